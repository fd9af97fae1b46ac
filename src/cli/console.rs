//! How `serve` and `join` tell what happens, and how they are asked to stop: by a person, or by `cutlayer run`.

use super::exit::Exit;
use super::output::Output;
use cutlayer_lab::describe;
use cutlayer_node::{Event, EventSink, Stop};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A person sees a step at most this often.
const STEP_EVERY: Duration = Duration::from_secs(2);

/// How long a supervised process may take to stop after its supervisor is gone.
const ORPHAN_WAIT: Duration = Duration::from_secs(90);

/// The first Ctrl-C asks for an end, the second makes one.
pub(crate) fn stop_on_interrupt(stop: &Stop) {
    let stop = stop.clone();
    tokio::spawn(async move {
        interrupted().await;
        stop.trigger();
        interrupted().await;
        std::process::exit(Exit::Interrupted as i32);
    });
}

/// Ctrl-C, or what a service manager sends in its place.
async fn interrupted() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
            return;
        }
    }
    if tokio::signal::ctrl_c().await.is_err() {
        // No signals to be had here: the run cannot be interrupted so, and must not be ended for it.
        std::future::pending::<()>().await;
    }
}

/// Stops when standard input ends, which it does when the supervisor asks, and when it is gone.
///
/// Ctrl-C reaches the whole group of a terminal's processes; deciding what it means is the supervisor's.
pub(crate) fn stop_with_supervisor(stop: &Stop) {
    tokio::spawn(async {
        loop {
            if tokio::signal::ctrl_c().await.is_err() {
                return;
            }
        }
    });
    let stop = stop.clone();
    // A thread of its own: a blocked read must not keep the runtime from ending.
    std::thread::spawn(move || {
        let mut scratch = [0; 256];
        while std::io::stdin().read(&mut scratch).is_ok_and(|count| count > 0) {}
        stop.trigger();
        std::thread::sleep(ORPHAN_WAIT);
        std::process::exit(Exit::Interrupted as i32);
    });
}

/// One JSON object a line on standard output.
pub(crate) fn event_lines() -> EventSink {
    Arc::new(|event| {
        let line = serde_json::to_string(&event).expect("our own values have string keys");
        let mut stdout = std::io::stdout().lock();
        // A supervisor that is gone also closed standard input, and that ends this process.
        let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
    })
}

/// Lines for a person on standard error; the steps only now and then.
pub(crate) fn event_words(output: &Output) -> EventSink {
    let (output, state) = (*output, Mutex::new(Names::default()));
    Arc::new(move |event| {
        let mut state = state.lock().expect("no holder of this lock panics");
        if let Some(line) = state.line(&event) {
            output.say(&line);
        }
    })
}

#[derive(Default)]
struct Names {
    of: BTreeMap<u32, String>,
    step_said: Option<Instant>,
}

impl Names {
    fn line(&mut self, event: &Event) -> Option<String> {
        match event {
            Event::Joined { client, name, .. } => {
                self.of.insert(*client, name.clone());
            }
            Event::Step { client, round, step, loss, tokens, wait_ms, compute_ms, .. } => {
                if self.step_said.is_some_and(|said| said.elapsed() < STEP_EVERY) {
                    return None;
                }
                self.step_said = Some(Instant::now());
                let (name, loss) = (self.name(*client), loss.map_or(String::new(), |loss| format!("loss {loss:.4}, ")));
                return Some(format!(
                    "round {round} step {step}{name}: {loss}{tokens} tokens, computed {compute_ms:.0} ms, waited {wait_ms:.0} ms"
                ));
            }
            _ => {}
        }
        describe(event, |client| self.of.get(&client).cloned().unwrap_or_else(|| format!("client {client}")))
    }

    fn name(&self, client: u32) -> String {
        self.of.get(&client).map_or(String::new(), |name| format!(" of {name}"))
    }
}
