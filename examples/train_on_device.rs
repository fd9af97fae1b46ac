//! An app's part in a run: its own texts, a key it makes for itself, and a progress line.
//!
//! Start a server, and paste the address, key and token that it prints:
//! ```sh
//! cutlayer serve --model MODEL --clients 1 --listen 127.0.0.1:4433 --invite app
//! cargo run --release --example train_on_device -- 127.0.0.1:4433 KEY TOKEN MODEL
//! ```

use cutlayer::{Client, Event};
use std::env::args;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = args().skip(1).collect();
    let [server, key, token, model] = arguments.as_slice() else {
        return Err("usage: train_on_device HOST:PORT SERVER_KEY TOKEN MODEL_FOLDER".into());
    };
    let notes = vec![
        ("What did we plant on Monday?", "Beans, along the south wall."),
        ("When is the plumber due?", "Thursday before noon."),
        ("Who keeps the spare key?", "The neighbour with the green door."),
    ];
    let report = Client::builder()
        .server(server, key)
        .token(token)
        .model(model)
        .identity("app-keys")
        .cut(2)
        .data(notes)
        .on_event(|event| {
            if let Event::Step { round, step, loss: Some(loss), .. } = event {
                println!("round {round} step {step}: loss {loss:.4}");
            }
        })
        .join()
        .await?;
    println!("{} steps, {} B up: {}", report.steps, report.bytes.0, report.reason);
    Ok(())
}
