//! `cutlayer pull ORG/NAME`: a model from the Hugging Face Hub, as files that we read and nothing else.

use super::exit::{Exit, Failure};
use super::output::Output;
use anyhow::Result;
use clap::Args;
use cutlayer_model::{ModelFolder, read_spec};
use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Repo, RepoType};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Files taken besides the weights, where the model has them.
const FILES: [&str; 9] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
];

/// Weights in one file.
const SINGLE: &str = "model.safetensors";
/// Which shard holds which tensor.
const INDEX: &str = "model.safetensors.index.json";
/// Attempts at a file after the first.
const RETRIES_MAX: usize = 3;
/// Where a token for gated models may stand.
const TOKEN_VARIABLE: &str = "HF_TOKEN";

/// Arguments of `pull`.
#[derive(Args, Debug)]
#[command(after_help = "\
Example: cutlayer pull HuggingFaceTB/SmolLM2-135M --to models/smollm
HF_ENDPOINT names a mirror, HF_HOME the cache, HF_TOKEN the token for gated models.")]
pub(crate) struct PullArgs {
    /// Name on the Hub
    #[arg(value_name = "ORG/NAME")]
    model: String,
    /// Branch, tag or commit
    #[arg(long, default_value = "main")]
    revision: String,
    /// Folder to copy the files to; without one they stay in the Hub's cache, which the printed path names
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
}

/// Fetches it.
pub(crate) fn run(args: PullArgs, output: &Output) -> Result<Exit> {
    let (organisation, name) = args.model.split_once('/').unwrap_or_default();
    if organisation.is_empty() || name.is_empty() || name.contains('/') {
        let message = format!("`{}` is no model name; write ORG/NAME as on huggingface.co, such as HuggingFaceTB/SmolLM2-135M", args.model);
        return Err(Failure::because(Exit::Usage, message));
    }
    let explain = |error: &ApiError| explain(error, &args);
    let mut builder = ApiBuilder::from_env().with_progress(output.is_watched()).with_retries(RETRIES_MAX);
    if let Some(token) = std::env::var(TOKEN_VARIABLE).ok().filter(|token| !token.is_empty()) {
        builder = builder.with_token(Some(token));
    }
    let api = builder.build().map_err(|error| explain(&error))?;
    let repo = api.repo(Repo::with_revision(args.model.clone(), RepoType::Model, args.revision.clone()));
    let info = repo.info().map_err(|error| explain(&error))?;
    let present: Vec<String> = info.siblings.into_iter().map(|file| file.rfilename).collect();
    let wanted = wanted(&present);
    if !wanted.iter().any(|file| file.ends_with(".safetensors")) {
        let message = format!("{} has no safetensors weights, the only kind read here; look for a converted copy", args.model);
        return Err(Failure::because(Exit::ModelOrData, message));
    }
    output.say(&format!("{} at {}: {} files", args.model, info.sha, wanted.len()));
    let fetched = fetch(&repo, &wanted, output, explain)?;
    let folder = match &args.to {
        Some(folder) => copy_to(folder, &fetched)?,
        None => fetched.first().and_then(|(_, path)| path.parent()).map(Path::to_path_buf).unwrap_or_default(),
    };
    report(&args, &info.sha, &folder, &wanted, output);
    Ok(Exit::Success)
}

/// Of the files there are, those we read: unsharded weights are preferred, and a second copy in another layout is left.
fn wanted(present: &[String]) -> Vec<String> {
    let single = present.iter().any(|file| file == SINGLE);
    let is_weights = |file: &str| {
        let shard = file.starts_with("model-") && file.ends_with(".safetensors");
        if single { file == SINGLE } else { shard || file == INDEX }
    };
    present.iter().filter(|file| FILES.contains(&file.as_str()) || is_weights(file)).cloned().collect()
}

fn fetch(
    repo: &ApiRepo,
    files: &[String],
    output: &Output,
    explain: impl Fn(&ApiError) -> anyhow::Error,
) -> Result<Vec<(String, PathBuf)>> {
    let mut fetched = Vec::new();
    for file in files {
        if !output.is_watched() {
            output.say(file);
        }
        fetched.push((file.clone(), repo.get(file).map_err(|error| explain(&error))?));
    }
    Ok(fetched)
}

fn copy_to(folder: &Path, files: &[(String, PathBuf)]) -> Result<PathBuf> {
    let unwritable = |error: std::io::Error| Failure::because(Exit::ModelOrData, format!("cannot write to {}: {error}", folder.display()));
    std::fs::create_dir_all(folder).map_err(unwritable)?;
    for (name, path) in files {
        std::fs::copy(path, folder.join(name)).map_err(unwritable)?;
    }
    Ok(folder.into())
}

fn report(args: &PullArgs, revision: &str, folder: &Path, files: &[String], output: &Output) {
    // A model that we cannot run is worth having all the same, with a word of warning.
    let trouble = ModelFolder::open(folder).map_err(anyhow::Error::from).and_then(|folder| Ok(read_spec(&folder)?)).err();
    if let Some(trouble) = &trouble {
        output.say(&format!("fetched, but it will not run here: {trouble}"));
    }
    let trouble = trouble.map(|trouble| trouble.to_string());
    let value = json!({ "model": args.model, "revision": revision, "folder": folder, "files": files, "trouble": trouble });
    output.result(&value, &folder.display().to_string());
}

fn explain(error: &ApiError, args: &PullArgs) -> anyhow::Error {
    let text = error.to_string();
    let (exit, advice) = if text.contains("status code 404") {
        (Exit::Usage, "there is no such model or revision; check the name on huggingface.co".to_owned())
    } else if text.contains("status code 401") || text.contains("status code 403") {
        (Exit::Refused, format!("it is gated or does not exist; accept its licence on huggingface.co and set {TOKEN_VARIABLE}"))
    } else {
        (Exit::Network, "check the network, or name a mirror in HF_ENDPOINT; what was fetched so far is kept".to_owned())
    };
    Failure::because(exit, format!("cannot fetch {}: {advice} ({text})", args.model))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(present: &[&str], expected: &[&str]) {
        let present: Vec<String> = present.iter().map(|file| (*file).to_owned()).collect();
        assert_eq!(wanted(&present), expected);
    }

    /// Goal: only what we read is fetched. Method: a single file beside other formats, and shards with their index.
    #[test]
    fn one_copy_of_the_weights_is_fetched() {
        check(
            &["README.md", "config.json", "model.safetensors", "model-00001-of-00002.safetensors", "pytorch_model.bin", "onnx/model.onnx"],
            &["config.json", "model.safetensors"],
        );
        check(
            &["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", INDEX, "tokenizer.json", "consolidated.safetensors"],
            &["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", INDEX, "tokenizer.json"],
        );
    }
}
