//! `cutlayer doctor`: what would keep a run from working, and how to mend it.
//!
//! Changes nothing, sends nothing off this machine.

mod checks;

use super::config_args::ConfigArgs;
use super::exit::Exit;
use super::output::Output;
use clap::Args;
use serde::Serialize;
use std::path::PathBuf;

/// Arguments of `doctor`.
#[derive(Args, Debug)]
#[command(after_help = "Example: cutlayer doctor experiments/shakespeare/run.toml")]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Folder whose disk the runs will fill
    #[arg(long, value_name = "DIR", default_value = "runs")]
    runs: PathBuf,
}

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    /// Nothing to do.
    Ok,
    /// Works, though not as well as it could.
    Warn,
    /// Does not work.
    Fail,
}

/// One check.
#[derive(Clone, Debug, Serialize)]
struct Check {
    /// What was looked at.
    what: String,
    /// How it came out.
    state: State,
    /// What was seen.
    found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    mend: Option<String>,
    /// The exit code that a failure stands for.
    #[serde(skip)]
    exit: Exit,
}

impl Check {
    fn ok(what: impl Into<String>, found: impl Into<String>) -> Self {
        Self { what: what.into(), state: State::Ok, found: found.into(), mend: None, exit: Exit::Success }
    }

    fn warn(what: impl Into<String>, found: impl Into<String>, mend: &str) -> Self {
        Self { what: what.into(), state: State::Warn, found: found.into(), mend: Some(mend.into()), exit: Exit::Success }
    }

    fn fail(what: impl Into<String>, found: impl Into<String>, mend: &str, exit: Exit) -> Self {
        Self { what: what.into(), state: State::Fail, found: found.into(), mend: Some(mend.into()), exit }
    }

    fn line(&self) -> String {
        let state = match self.state {
            State::Ok => "OK  ",
            State::Warn => "WARN",
            State::Fail => "FAIL",
        };
        let mend = self.mend.as_ref().filter(|mend| !mend.is_empty()).map_or(String::new(), |mend| format!("\n        {mend}"));
        format!("{state}  {}: {}{mend}", self.what, self.found)
    }
}

/// Looks at everything.
pub(crate) fn run(args: DoctorArgs, output: &Output) -> anyhow::Result<Exit> {
    let mut checks = checks::machine();
    checks.push(checks::network());
    checks.extend(checks::run_file(&args.config));
    checks.push(checks::runs_folder(&args.runs));
    let lines: Vec<String> = checks.iter().map(Check::line).collect();
    let exit = checks.iter().find(|check| check.state == State::Fail).map_or(Exit::Success, |check| check.exit);
    #[derive(Serialize)]
    struct Report<'a> {
        healthy: bool,
        checks: &'a [Check],
    }
    output.result(&Report { healthy: exit == Exit::Success, checks: &checks }, &lines.join("\n"));
    Ok(exit)
}
