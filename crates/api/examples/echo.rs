//! The endpoint over an engine without a model: `cargo run --release -p cutlayer-api --example echo -- 127.0.0.1:8000 [KEY]`.
//!
//! It prints `listening on ADDRESS` once it is ready (port 0 takes a free one), and ends with an interrupt. The official client is
//! tested against it: see `tests/openai.sh`.

#[path = "../tests/http/engine.rs"]
#[allow(clippy::unwrap_used)]
mod engine;

use std::sync::Arc;

use cutlayer_api::{ApiKey, ServerConfig, listen, serve};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let listener = listen(arguments.next().unwrap_or_else(|| "127.0.0.1:8000".to_owned()).parse()?)?;
    let keys = arguments.map(|key| ApiKey::new(&key)).collect::<Result<_, _>>()?;
    println!("listening on {}", listener.local_addr()?);
    let interrupted = async {
        // Without a handler the signal ends the process as well.
        let _ = tokio::signal::ctrl_c().await;
    };
    let config = ServerConfig { keys, ..ServerConfig::local() };
    serve(listener, Arc::new(engine::Echo::default()), config, interrupted).await?;
    Ok(())
}
