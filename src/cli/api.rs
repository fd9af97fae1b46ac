//! `cutlayer api`: an OpenAI-compatible endpoint on the device, over a model that may be split with a host.

use super::block_on;
use super::console::{event_words, stop_on_interrupt};
use super::engine::ModelEngine;
use super::exit::{Exit, Failure};
use super::generator_args::GeneratorArgs;
use super::output::Output;
use anyhow::Context;
use clap::Args;
use cutlayer_api::{ApiKey, ChatTemplate, ModelCard, ModelKind, ServeError, ServerConfig, listen, serve};
use cutlayer_model::ModelFolder;
use cutlayer_node::{Embedder, Generator, Stop};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

/// Most of the bodies that are held at once, in bodies of the longest kind.
const BODIES_MAX: u32 = 16;

/// Arguments of `api`.
#[derive(Args, Debug)]
#[command(after_help = "\
All on this machine:
  cutlayer api --model models/smollm
Split: the first two blocks here, the rest on a host, which printed the flags; prompts never leave this machine as text:
  cutlayer api --model models/smollm --cut 2 --server 10.0.0.5:4434 --server-id KEY
For other machines too, with a key that they send as `Authorization: Bearer KEY`:
  CUTLAYER_API_KEY=$(openssl rand -hex 32) cutlayer api --model models/smollm --listen 0.0.0.0:8080")]
pub(crate) struct ApiArgs {
    #[command(flatten)]
    generator: GeneratorArgs,
    /// Address to answer at; 0.0.0.0:8080 is every network of this machine, and needs a key
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// A key that clients must send (repeatable); other processes can read arguments, so better the variable or --key-file
    #[arg(long = "key", value_name = "KEY", env = "CUTLAYER_API_KEY", hide_env_values = true)]
    api_keys: Vec<String>,
    /// File with more of them, one a line; empty lines and lines that begin with # are passed over
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Folder of an encoder, such as all-MiniLM-L6-v2's, for /v1/embeddings; it runs here whole
    #[arg(long, value_name = "DIR")]
    embed_model: Option<PathBuf>,
    /// Requests that are answered at once
    #[arg(long, value_name = "N", default_value_t = 64)]
    requests_max: usize,
    /// Requests that wait for their turn; more are refused with status 429
    #[arg(long, value_name = "N", default_value_t = 1024)]
    waiting_max: usize,
    /// Longest body of a request, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    body_mib: u32,
    /// Longest time for one request, from its head to its last token, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    request_s: u64,
    /// Origin whose pages may read answers in a browser, such as https://example.org (repeatable)
    #[arg(long, value_name = "ORIGIN")]
    origin: Vec<String>,
}

/// Answers until it is interrupted.
pub(crate) fn run(args: ApiArgs, output: &Output) -> anyhow::Result<Exit> {
    let config = config(&args)?;
    config.check(args.listen).map_err(|error| not_served(&args, &error))?;
    let folder = &args.generator.model.model;
    let template = ChatTemplate::open(folder).map_err(|error| Failure::because(Exit::ModelOrData, error.to_string()))?;
    let cards = cards(&args.generator)?;
    block_on(async {
        // Before the model is loaded: a port that is taken is heard of at once.
        let listener = listen(args.listen).map_err(|error| not_served(&args, &error))?;
        let generator = args.generator.open(output, event_words(output)).await?;
        generator.connect().await?;
        let mut cards = sized(cards, &generator);
        let embedder = match &args.embed_model {
            Some(folder) => Some(args.generator.open_encoder(folder, output, event_words(output)).await?),
            None => None,
        };
        if let (Some(folder), Some(embedder)) = (&args.embed_model, &embedder) {
            cards.push(encoder_card(&cards, folder, embedder)?);
        }
        let address = listener.local_addr()?;
        output.say(&welcome(address, &cards[0].id, !config.keys.is_empty()));
        let engine = ModelEngine::new(generator, embedder, cards, template.into());
        let stop = Stop::new();
        stop_on_interrupt(&stop);
        serve(listener, Arc::new(engine), config, async { stop.triggered().await }).await.map_err(|error| not_served(&args, &error))?;
        output.say("all requests are answered");
        Ok(Exit::Success)
    })
}

fn config(args: &ApiArgs) -> anyhow::Result<ServerConfig> {
    let mut words = args.api_keys.clone();
    if let Some(file) = &args.key_file {
        let text = fs::read_to_string(file).with_context(|| format!("cannot read --key-file {}", file.display()));
        let text = text.map_err(|error| Failure::because(Exit::Usage, format!("{error:#}")))?;
        words.extend(text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned));
        if words.is_empty() {
            let reason = format!("--key-file {} has no key: write one on a line of its own, or leave the option out", file.display());
            return Err(Failure::because(Exit::Usage, reason));
        }
    }
    let keys = words.iter().map(|word| ApiKey::new(word)).collect::<Result<_, _>>();
    let body_bytes_max = args.body_mib << 20;
    let local = ServerConfig::local();
    Ok(ServerConfig {
        keys: keys.map_err(|error| Failure::because(Exit::Usage, error.to_string()))?,
        origins: args.origin.clone(),
        body_bytes_max,
        bodies_bytes_max: local.bodies_bytes_max.max(body_bytes_max.saturating_mul(BODIES_MAX)),
        requests_max: args.requests_max,
        waiting_max: args.waiting_max,
        request_time_max: Duration::from_secs(args.request_s),
        ..local
    })
}

fn not_served(args: &ApiArgs, error: &ServeError) -> anyhow::Error {
    match error {
        ServeError::Listener(error) => {
            let remedy = "give another address or port with --listen";
            Failure::because(Exit::Network, format!("cannot answer at {}: {error}; {remedy}", args.listen))
        }
        error => Failure::because(Exit::Usage, error.to_string()),
    }
}

/// The names that requests may give: the base model's folder, then the adapters.
fn cards(args: &GeneratorArgs) -> anyhow::Result<Vec<ModelCard>> {
    let folder = &args.model.model;
    let mut cards = vec![card(folder_name(folder), folder, args.fingerprint(None)?)];
    for adapter in args.model.adapters()? {
        if adapter.name == cards[0].id {
            let reason = format!("--adapter {}=..: the base model is called so; give the adapter a name of its own", adapter.name);
            return Err(Failure::because(Exit::Usage, reason));
        }
        cards.push(card(adapter.name.clone(), &adapter.folder, args.fingerprint(Some(&adapter))?));
    }
    Ok(cards)
}

fn card(id: String, folder: &Path, fingerprint: String) -> ModelCard {
    // A file system that keeps no times tells 0.
    let changed = fs::metadata(folder).and_then(|about| about.modified()).ok();
    let created_unix_s = changed.and_then(|time| time.duration_since(UNIX_EPOCH).ok()).map_or(0, |since| since.as_secs());
    ModelCard { id, created_unix_s, kind: ModelKind::Generates, context_tokens: 0, fingerprint }
}

/// With the context of the model, which is known once it is loaded.
fn sized(cards: Vec<ModelCard>, generator: &Generator) -> Vec<ModelCard> {
    let context_tokens = generator.spec().positions_max as u32;
    cards.into_iter().map(|card| ModelCard { context_tokens, ..card }).collect()
}

fn encoder_card(others: &[ModelCard], folder: &Path, embedder: &Embedder) -> anyhow::Result<ModelCard> {
    let (id, spec) = (folder_name(folder), embedder.spec());
    if others.iter().any(|other| other.id == id) {
        let reason = format!("--embed-model {}: another model is called {id} already; rename the folder", folder.display());
        return Err(Failure::because(Exit::Usage, reason));
    }
    let base = ModelFolder::open(folder)?.base_hash()?;
    let kind = ModelKind::Embeds { dimensions: spec.hidden as u32 };
    Ok(ModelCard { kind, context_tokens: spec.positions_max as u32, ..card(id, folder, format!("fp_{base}")) })
}

/// What a folder is called, also where it was given as `.` or with a link.
fn folder_name(folder: &Path) -> String {
    let whole = fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned());
    whole.file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned())
}

fn welcome(address: SocketAddr, model: &str, needs_key: bool) -> String {
    let key = if needs_key { " -H \"Authorization: Bearer $CUTLAYER_API_KEY\"" } else { "" };
    let body = serde_json::json!({ "model": model, "prompt": "Once upon a time", "max_tokens": 32, "stream": true });
    // A quote in a folder's name would end the shell's.
    let body = body.to_string().replace('\'', "'\\''");
    format!(
        "listening on http://{address}/v1\n\ntry:\n  curl -N http://{address}/v1/completions{key} -H 'Content-Type: application/json' -d '{body}'\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: what is printed can be pasted. Method: a name with a quote, with and without keys.
    #[test]
    fn the_example_survives_a_shell() {
        let said = welcome(([127, 0, 0, 1], 8080).into(), "it's", true);
        assert!(said.starts_with("listening on http://127.0.0.1:8080/v1\n"));
        assert!(said.contains(r#""model":"it'\''s""#) && said.contains("Bearer"), "{said}");
        assert!(!welcome(([127, 0, 0, 1], 8080).into(), "it", false).contains("Bearer"));
    }

    /// Goal: a model is called as its folder is. Method: a path with an end that names nothing.
    #[test]
    fn a_folder_has_a_name() {
        assert_eq!(folder_name(Path::new("models/quickstart/")), "quickstart");
        assert_eq!(folder_name(Path::new("models/quickstart/corpus/..")), "quickstart");
        assert_eq!(folder_name(Path::new("/")), "model");
    }
}
