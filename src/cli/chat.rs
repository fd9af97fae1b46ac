//! `cutlayer chat`: a conversation in the terminal, or line by line through a pipe.

mod history;

use super::block_on;
use super::console::event_words;
use super::exit::{Exit, Failure};
use super::generator_args::{GeneratorArgs, SamplingArgs};
use super::output::Output;
use clap::Args;
use cutlayer_api::ChatTemplate;
use cutlayer_node::{GenerateRequest, Generator, Piece, Prompt, Usage};
use history::{Conversation, Fitted, NoRoom};
use serde_json::{Value, json};
use std::io::{BufRead, IsTerminal, Write};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc;

/// Lines that may be typed ahead.
const LINES_MAX: usize = 16;

/// Arguments of `chat`.
#[derive(Args, Debug)]
#[command(after_help = "\
Type a line, read the answer. /reset begins anew, /stats tells what the last answer took, /exit or the end of input ends it.
Ctrl-C stops an answer; once more, with none under way, it ends the conversation.
  cutlayer chat --model models/smollm --system 'Be brief.'
  printf 'Hello!\\nAnd now in French.\\n' | cutlayer chat --model models/smollm")]
pub(crate) struct ChatArgs {
    #[command(flatten)]
    generator: GeneratorArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// What the model is told before the first line
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
}

/// Talks until there is nothing more to say.
pub(crate) fn run(args: ChatArgs, output: &Output) -> anyhow::Result<Exit> {
    let template = ChatTemplate::open(&args.generator.model.model);
    let template = template.map_err(|error| Failure::because(Exit::ModelOrData, error.to_string()))?;
    block_on(async {
        let generator = args.generator.open(output, event_words(output)).await?;
        if generator.tokenizer().is_none() {
            return Err(Failure::because(Exit::ModelOrData, "the model folder has no tokenizer.json, and a conversation is text"));
        }
        generator.connect().await?;
        let conversation = Conversation::new(args.system.clone());
        let mut chat = Chat { args: &args, output: *output, generator, template, conversation, last: None, told: vec![] };
        let ended = chat.talk().await;
        if output.is_json() {
            output.result(&json!({ "turns": chat.told }), "");
        }
        ended
    })
}

struct Chat<'a> {
    args: &'a ChatArgs,
    output: Output,
    generator: Generator,
    template: ChatTemplate,
    conversation: Conversation,
    /// What the last answer took.
    last: Option<Usage>,
    /// All turns, for programs.
    told: Vec<Value>,
}

/// How an answer ended.
enum Answered {
    Whole,
    /// By Ctrl-C: what was said until then is kept.
    Stopped,
}

impl Chat<'_> {
    async fn talk(&mut self) -> anyhow::Result<Exit> {
        let watched = std::io::stdin().is_terminal();
        let mut lines = lines();
        loop {
            if watched {
                self.show("> ");
            }
            let line = tokio::select! {
                line = lines.recv() => line,
                () = interrupt() => None,
            };
            let Some(line) = line else {
                if watched {
                    self.show("\n");
                }
                return Ok(Exit::Success);
            };
            match line?.trim() {
                "" => {}
                "/exit" => return Ok(Exit::Success),
                "/reset" => {
                    self.conversation = Conversation::new(self.args.system.clone());
                    self.output.say("a new conversation");
                }
                "/stats" => self.stats().await,
                command if command.starts_with('/') => self.output.say(&format!("{command}? There are /reset, /stats and /exit")),
                said => self.turn(said).await?,
            }
        }
    }

    /// One line and its answer. What cannot be asked is said, and the conversation goes on without it.
    async fn turn(&mut self, said: &str) -> anyhow::Result<()> {
        self.conversation.ask(said);
        let fitted = match self.fit() {
            Ok(fitted) => fitted,
            Err(reason) => {
                self.conversation.take_back();
                self.output.say(&reason);
                return Ok(());
            }
        };
        if fitted.dropped > 0 {
            self.output.say(&format!("({} of the oldest turns no longer fit and are forgotten)", fitted.dropped));
        }
        let mut text = String::new();
        let ended = self.answer(fitted, &mut text).await;
        self.show("\n");
        match ended? {
            Answered::Whole => {}
            Answered::Stopped => self.output.say("(stopped)"),
        }
        let usage = self.last.unwrap_or_default();
        self.told.push(json!({
            "user": said, "assistant": text, "prompt_tokens": usage.prompt_tokens, "cached_tokens": usage.cached_tokens,
            "completion_tokens": usage.completion_tokens,
        }));
        self.conversation.answered(text);
        Ok(())
    }

    /// The conversation as tokens, with room for an answer.
    fn fit(&mut self) -> Result<Fitted, String> {
        let context = self.generator.spec().positions_max;
        let room = (self.args.sampling.tokens_max as usize).min(context / 2);
        let now_unix_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
        let (template, tokenizer) = (&self.template, self.generator.tokenizer().expect("looked for at the start"));
        let tokens = |messages: &[_]| {
            let text = template.render(messages, true, now_unix_s).map_err(|error| error.to_string())?;
            tokenizer.encode(&text, template.add_special()).map_err(|error| error.to_string())
        };
        self.conversation.fit(context.saturating_sub(room), tokens).map_err(|error| match error {
            NoRoom::Long { tokens, most } => format!("that has {tokens} tokens, and {most} are left for it: say it shorter"),
            NoRoom::Refused(reason) => reason,
        })
    }

    async fn answer(&mut self, fitted: Fitted, text: &mut String) -> anyhow::Result<Answered> {
        let sampling = &self.args.sampling;
        let mut stop = sampling.stop.clone();
        stop.extend(self.template.stops().iter().map(|word| (*word).to_owned()));
        let prompt_tokens = fitted.ids.len() as u32;
        self.last = None;
        let mut generation = self.generator.generate(GenerateRequest {
            prompt: Prompt::Tokens(fitted.ids),
            adapter: sampling.adapter.clone(),
            sampling: sampling.spec(),
            stop,
            tokens_max: Some(sampling.tokens_max),
            ignore_end: false,
        });
        let mut count = 0;
        loop {
            let piece = tokio::select! {
                piece = generation.next() => piece,
                () = interrupt() => {
                    self.last = Some(Usage { prompt_tokens, completion_tokens: count, ..Usage::default() });
                    return Ok(Answered::Stopped);
                }
            };
            match piece {
                Some(Ok(Piece::Token(token))) => {
                    count += 1;
                    self.show(&token.text);
                    text.push_str(&token.text);
                }
                Some(Ok(Piece::End { text: rest, usage, .. })) => {
                    self.show(&rest);
                    text.push_str(&rest);
                    self.last = Some(usage);
                    return Ok(Answered::Whole);
                }
                Some(Err(error)) => return Err(error.into()),
                None => return Ok(Answered::Whole),
            }
        }
    }

    async fn stats(&self) {
        let Some(usage) = self.last else { return self.output.say("nothing was answered yet") };
        let decode_s = (usage.total_ms - usage.first_token_ms) / 1e3;
        let speed = match usage.completion_tokens.saturating_sub(1) {
            more if more > 0 && decode_s > 0.0 => format!(", then {:.1} tokens/s", f64::from(more) / decode_s),
            _ => String::new(),
        };
        let carried = self.generator.link_stats().await;
        let carried =
            carried.map_or(String::new(), |link| format!("; {} B sent and {} B received in all", link.bytes_sent, link.bytes_received));
        self.output.say(&format!(
            "{} tokens after {} ({} cached): first in {:.0} ms{speed}{carried}",
            usage.completion_tokens, usage.prompt_tokens, usage.cached_tokens, usage.first_token_ms
        ));
    }

    /// To whoever reads as it comes; a program gets it whole at the end.
    fn show(&self, text: &str) {
        if !self.output.is_json() {
            let mut stdout = std::io::stdout().lock();
            // Whoever reads may have gone (`| head`): the end of input comes soon enough.
            let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
        }
    }
}

/// Standard input, line by line. A thread of its own: a blocked read must not keep an answer waiting, nor the end.
fn lines() -> mpsc::Receiver<std::io::Result<String>> {
    let (sender, receiver) = mpsc::channel(LINES_MAX);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Ctrl-C. Where there are no signals to be had, never.
async fn interrupt() {
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}
