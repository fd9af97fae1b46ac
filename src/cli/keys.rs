//! `cutlayer keys`: this machine's identity, and on a server who may join.

use super::exit::{Exit, Failure};
use super::output::Output;
use anyhow::Result;
use clap::{Args, Subcommand};
use cutlayer::identity_at;
use cutlayer_transport::{AllowList, Entry, Identity, TOKEN_LIFE};
use cutlayer_wire::PeerId;
use serde_json::json;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

/// Where keys are kept if nothing else is said, under the home folder.
const KEYS_FALLBACK: &str = ".cutlayer";

/// The folder that holds this machine's private key and, on a server, the allow-list.
#[derive(Args, Clone, Debug)]
pub(crate) struct KeyStore {
    /// Folder of this machine's key and allow-list [default: ~/.cutlayer]
    #[arg(long = "keys", value_name = "DIR", env = "CUTLAYER_KEYS")]
    folder: Option<PathBuf>,
}

impl KeyStore {
    fn folder(&self) -> Result<PathBuf> {
        if let Some(folder) = &self.folder {
            return Ok(folder.clone());
        }
        let home = std::env::home_dir().filter(|home| !home.as_os_str().is_empty());
        home.map(|home| home.join(KEYS_FALLBACK)).ok_or_else(|| Failure::because(Exit::Usage, "there is no home folder; give --keys DIR"))
    }

    /// The identity, made now if there is none.
    pub fn identity(&self, output: &Output) -> Result<Identity> {
        let folder = self.folder()?;
        let (identity, is_new) = identity_at(&folder)?;
        if is_new {
            output.say(&format!("made a new key in {}: {}", folder.display(), identity.peer_id().to_hex()));
        }
        Ok(identity)
    }

    /// Who may join.
    pub fn allow_list(&self) -> Result<AllowList> {
        Ok(AllowList::open(&self.folder()?)?)
    }

    /// A name for people, made from the key: the owner's own is not ours to send.
    pub fn name(&self) -> String {
        let known = self.folder().ok().and_then(|folder| Identity::load(&folder).ok());
        known.map_or("client".into(), |identity| format!("client-{}", identity.peer_id()))
    }
}

/// Arguments of `keys`.
#[derive(Args, Debug)]
pub(crate) struct KeysArgs {
    #[command(flatten)]
    store: KeyStore,
    #[command(subcommand)]
    command: KeysCommand,
}

#[derive(Debug, Subcommand)]
enum KeysCommand {
    /// Make this machine's key, or show the one there is
    New {
        /// Folder, in place of --keys
        #[arg(value_name = "DIR")]
        folder: Option<PathBuf>,
    },
    /// Let a client's key in
    Enrol {
        /// What to call it
        name: String,
        /// The client's key, as its `cutlayer keys new` printed it
        #[arg(long)]
        key: PeerId,
    },
    /// Make a single-use token that lets one new key in, within a day
    Token {
        /// What to call the client
        name: String,
    },
    /// List who may join
    List,
    /// Throw a key out; a running server ends its session within seconds
    Revoke {
        /// Its name or its key
        who: String,
    },
}

/// Does it.
pub(crate) fn run(args: KeysArgs, output: &Output) -> Result<Exit> {
    match args.command {
        KeysCommand::New { folder } => {
            let folder = folder.map_or_else(|| args.store.folder(), Ok)?;
            let (identity, is_new) = identity_at(&folder)?;
            let key = identity.peer_id().to_hex();
            output.say(if is_new {
                "made a new key; the private half never leaves this folder"
            } else {
                "there is a key already; this is it"
            });
            output.result(&json!({ "key": key, "folder": folder, "new": is_new }), &key);
        }
        KeysCommand::Enrol { name, key } => {
            args.store.allow_list()?.allow(&name, key)?;
            output.result(&json!({ "name": name, "key": key.to_hex() }), &format!("{name} ({key}) may join"));
        }
        KeysCommand::Token { name } => {
            let token = args.store.allow_list()?.issue_token(&name)?;
            output.say(&format!("good once, within {} hours, with cutlayer join --token", TOKEN_LIFE.as_secs() / 3600));
            output.result(&json!({ "name": name, "token": token, "hours": TOKEN_LIFE.as_secs() / 3600 }), &token);
        }
        KeysCommand::List => list(&args.store.allow_list()?, output),
        KeysCommand::Revoke { who } => {
            let key = args.store.allow_list()?.revoke(&who)?;
            output.result(&json!({ "revoked": key }), &format!("{who} may not join any more"));
        }
    }
    Ok(Exit::Success)
}

fn list(allow: &AllowList, output: &Output) {
    let (entries, tokens) = (allow.entries(), allow.tokens());
    let line = |(index, entry): (usize, &Entry)| {
        let revoked = if entry.revoked { "  revoked" } else { "" };
        format!("{index:>3}  {}  {}  {}{revoked}", entry.key, days_ago(entry.added_s), entry.name)
    };
    let mut lines: Vec<String> = entries.iter().enumerate().map(line).collect();
    if lines.is_empty() {
        lines.push("nobody may join; `cutlayer keys enrol NAME --key KEY` lets a client in".into());
    }
    if tokens > 0 {
        lines.push(format!("{tokens} tokens wait to be used"));
    }
    output.result(&json!({ "peers": entries, "tokens": tokens }), &lines.join("\n"));
}

fn days_ago(unix_s: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    match now.saturating_sub(unix_s) / 86_400 {
        0 => "today".into(),
        1 => "yesterday".into(),
        days => format!("{days} days ago"),
    }
}
