//! `cutlayer generate`: one continuation, streamed to the terminal.

use super::block_on;
use super::console::event_words;
use super::exit::{Exit, Failure};
use super::generator_args::{GeneratorArgs, SamplingArgs};
use super::offload_args::OffloadArgs;
use super::output::Output;
use anyhow::Context;
use clap::Args;
use cutlayer_node::{Answered, Answerer, FinishReason, GenerateRequest, Piece, Prompt, Usage};
use serde_json::json;
use std::io::{IsTerminal, Read, Write};

/// Most bytes read as a prompt.
const PROMPT_BYTES_MAX: u64 = 16 << 20;

/// Arguments of `generate`.
#[derive(Args, Debug)]
#[command(after_help = "\
All on this machine:
  cutlayer generate --model models/quickstart 'What time does'
Split: the first block here, the rest on a host, which printed the flags:
  cutlayer generate --model models/quickstart --cut 1 --server 10.0.0.5:4434 --server-id KEY 'What time does'
By a small model here while it is sure of itself, else split:
  cutlayer generate --mode auto --local-model models/small --policy policy.json --model models/large --server .. 'What time does'")]
pub(crate) struct GenerateArgs {
    #[command(flatten)]
    generator: GeneratorArgs,
    #[command(flatten)]
    offload: OffloadArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// What to go on from; - reads standard input
    #[arg(value_name = "PROMPT")]
    prompt: Option<String>,
    /// Token ids to go on from, in place of a prompt: for models without a tokenizer
    #[arg(long, value_name = "IDS", value_delimiter = ',', conflicts_with = "prompt")]
    ids: Vec<u32>,
    /// Go on past the token that ends a text: for measurements
    #[arg(long)]
    ignore_end: bool,
    /// Say at the end how long it took
    #[arg(long)]
    stats: bool,
}

/// Generates once.
pub(crate) fn run(args: GenerateArgs, output: &Output) -> anyhow::Result<Exit> {
    let prompt = prompt(&args)?;
    let request = GenerateRequest {
        prompt,
        adapter: args.sampling.adapter.clone(),
        sampling: args.sampling.spec(),
        stop: args.sampling.stop.clone(),
        tokens_max: Some(args.sampling.tokens_max),
        ignore_end: args.ignore_end,
    };
    block_on(async {
        let offloader = args.offload.open(&args.generator, output, event_words(output)).await?;
        let mut generation = offloader.generate(request);
        let (mut text, mut ids) = (String::new(), vec![]);
        while let Some(piece) = generation.next().await {
            match piece? {
                Piece::Token(token) => {
                    show(output, &token.text);
                    text.push_str(&token.text);
                    ids.push(token.id);
                }
                Piece::End { text: rest, reason, usage } => {
                    show(output, &rest);
                    text.push_str(&rest);
                    let stats = offloader.generator().link_stats().await.unwrap_or_default();
                    end(output, &args, (&text, &ids), reason, &usage, (stats.bytes_sent, stats.bytes_received));
                }
            }
        }
        Ok(Exit::Success)
    })
}

fn prompt(args: &GenerateArgs) -> anyhow::Result<Prompt> {
    if !args.ids.is_empty() {
        return Ok(Prompt::Tokens(args.ids.clone()));
    }
    let from_input = match args.prompt.as_deref() {
        Some("-") => true,
        Some(text) => return Ok(Prompt::Text(text.into())),
        None => !std::io::stdin().is_terminal(),
    };
    if !from_input {
        return Err(Failure::because(Exit::Usage, "there is nothing to go on from: give a prompt, or - and write it to standard input"));
    }
    let mut text = String::new();
    std::io::stdin().take(PROMPT_BYTES_MAX).read_to_string(&mut text).context("standard input is no text")?;
    Ok(Prompt::Text(text))
}

/// To whoever reads as it comes; a program gets it whole at the end.
fn show(output: &Output, text: &str) {
    if !output.is_json() {
        let mut stdout = std::io::stdout().lock();
        // Whoever reads may have gone (`| head`): the end comes soon enough.
        let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    }
}

fn end(output: &Output, args: &GenerateArgs, (text, ids): (&str, &[u32]), reason: FinishReason, usage: &Usage, bytes: (u64, u64)) {
    let more = usage.completion_tokens.saturating_sub(1);
    let decode_s = (usage.total_ms - usage.first_token_ms) / 1e3;
    let per_second = if more > 0 && decode_s > 0.0 { f64::from(more) / decode_s } else { 0.0 };
    if output.is_json() {
        let reason = if reason == FinishReason::Stop { "stop" } else { "length" };
        let value = json!({
            "text": text, "ids": ids, "finish_reason": reason, "prompt_tokens": usage.prompt_tokens, "cached_tokens": usage.cached_tokens,
            "completion_tokens": usage.completion_tokens, "guessed": usage.guessed, "guessed_right": usage.guessed_right,
            "rounds": usage.rounds, "first_token_ms": usage.first_token_ms, "total_ms": usage.total_ms, "decode_tokens_per_s": per_second,
            "bytes_sent": bytes.0, "bytes_received": bytes.1, "answered_by": usage.answered.map(|answered| by(&answered)),
            "confidence": usage.answered.and_then(|answered| answered.confidence), "alike": usage.answered.and_then(|answered| answered.alike)
        });
        return output.result(&value, "");
    }
    show(output, "\n");
    if args.stats {
        let guesses = match usage.guessed {
            0 => String::new(),
            guessed => format!(", {} of {guessed} guesses right", usage.guessed_right),
        };
        output.say(&format!(
            "{} tokens after {} ({} cached): first in {:.0} ms, then {per_second:.1} tokens/s; {} rounds{guesses}",
            usage.completion_tokens, usage.prompt_tokens, usage.cached_tokens, usage.first_token_ms, usage.rounds
        ));
        if let Some(answered) = &usage.answered {
            let confidence = answered.confidence.map(|sure| format!("; the device was {:.0} % sure", sure * 100.0)).unwrap_or_default();
            let alike = answered.alike.map(|alike| format!("; a question {alike:.3} alike")).unwrap_or_default();
            output.say(&format!("answered by {}{confidence}{alike}; {} bytes both ways", by(answered), answered.bytes));
        }
    }
}

fn by(answered: &Answered) -> &'static str {
    match answered.by {
        Answerer::Device => "device",
        Answerer::Host => "host",
        Answerer::Memory => "memory",
    }
}
