//! An app that generates: the first block of a model here, the rest on a host, tokens as they come.
//!
//! Start a host and paste what it prints:
//!
//!     cutlayer host --model models/quickstart --invite app
//!     cargo run --release --example generate_on_device -- models/quickstart HOST:PORT KEY TOKEN 'The line between'

use cutlayer::{Drafting, Piece, Session};
use std::io::Write;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, host, key, token, prompt] = &arguments[..] else {
        return Err("give a model folder, the host's address and key, a token, and a prompt".into());
    };
    let session = Session::builder()
        .model(model)
        .identity(std::env::temp_dir().join("cutlayer-app"))
        .host(host, key)
        .token(token)
        .cut(1)
        .drafting(Drafting::Ngram { depth_max: 8 })
        .on_event(|event| eprintln!("{event:?}"))
        .open()
        .await?;
    let mut answer = session.generate(prompt);
    while let Some(piece) = answer.next().await {
        match piece? {
            Piece::Token(token) => print!("{}", token.text),
            Piece::End { text, usage, .. } => println!("{text}\n{} tokens in {} round trips", usage.completion_tokens, usage.rounds),
        }
        std::io::stdout().flush()?;
    }
    Ok(())
}
