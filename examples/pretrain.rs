//! Makes the small model and the corpus that this repository ships, from nothing but code and a seed.
//!
//! `cargo run --release --example pretrain -- models/quickstart` writes the corpus, trains the tokenizer on it, and pretrains
//! a Llama-shaped model of 1.2 M weights on its prose. `experiments/pretrain/README.md` has the figures.

use cutlayer_data::{BatchShape, Batcher, Layout, Objective, Record, Tokenizer, corpus, evaluation_batches, tokenise, train_tokenizer};
use cutlayer_model::{DeviceChoice, ExportDtype, Pretrainer, Rows, write_model};
use cutlayer_wire::{OptimizerKind, OptimizerSpec, Schedule};
use serde_json::json;
use std::error::Error;
use std::path::PathBuf;
use std::time::Instant;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const SEED: u64 = 20_261_121;
const VOCAB: usize = 1024;
const TOKENS_MAX: usize = 128;
const SEQUENCES: u32 = 16;
const LEARNING_RATE: f32 = 3e-3;
/// Documents kept out of training, to watch the loss on.
const WATCHED: usize = 100;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder: PathBuf = arguments.next().ok_or("usage: pretrain FOLDER [STEPS] [BLOCKS]")?.into();
    let steps: u32 = arguments.next().map_or(Ok(2000), |steps| steps.parse())?;
    // Fewer make a model that guesses for the shipped one: they share the tokenizer, which is trained on the same text.
    let blocks: u32 = arguments.next().map_or(Ok(6), |blocks| blocks.parse())?;
    std::fs::create_dir_all(&folder)?;

    let spec = corpus::CorpusSpec::shipped();
    let written = corpus::write_corpus(&folder.join("corpus"), &spec)?;
    println!("corpus: {} B", written.bytes);
    let documents = corpus::pretraining_documents(&spec)?;
    train_tokenizer(documents.iter().map(String::as_str), VOCAB, &folder)?;
    let tokenizer = Tokenizer::open(&folder)?;

    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 128,
        "intermediate_size": 352, "num_hidden_layers": blocks, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
        "vocab_size": tokenizer.vocab_size(), "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "rope_scaling": null, "tie_word_embeddings": true, "attention_bias": false, "mlp_bias": false, "bos_token_id": 1,
        "eos_token_id": 2, "initializer_range": 0.02, "use_cache": true
    });
    let records: Vec<Record> = documents.iter().map(Record::text).collect();
    let (watched, trained) = records.split_at(WATCHED);
    let examples = |records| tokenise(&tokenizer, records, Objective::CausalLm, TOKENS_MAX).map(|tokenised| tokenised.examples);
    let shape = BatchShape { sequences: SEQUENCES, tokens_max: TOKENS_MAX as u32, layout: Layout::Padded, group_by_length: true };
    let watched = evaluation_batches(&examples(watched)?, &shape)?;
    let mut batches = Batcher::new(examples(trained)?, shape, SEED)?;
    let mut model = Pretrainer::new(&config, SEED, &DeviceChoice::Cpu.open()?)?;
    let optimizer = OptimizerSpec {
        kind: OptimizerKind::AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 },
        learning_rate: LEARNING_RATE,
        schedule: Schedule::Cosine,
        warmup_steps: steps / 20,
        clip_norm: Some(1.0),
        reset_each_round: false,
    };
    let rows = |lengths: &[u32]| Rows::new(lengths, TOKENS_MAX);
    let started = Instant::now();
    let mut tokens = 0;
    for step in 0..=steps {
        if step % 200 == 0 || step == steps {
            let mut sums = cutlayer_wire::EvalSums::default();
            for batch in &watched {
                sums.add(&model.evaluate(&batch.ids, &rows(&batch.lengths)?, &batch.labels)?);
            }
            let seconds = started.elapsed().as_secs_f64();
            println!(
                "step {step:5}  loss {:.4}  {:.0} tokens/s  {seconds:.0} s",
                sums.mean_loss().unwrap_or(f64::NAN),
                f64::from(tokens) / seconds
            );
        }
        let batch = batches.next_batch();
        tokens += batch.ids.len() as u32;
        let learning_rate = f64::from(optimizer.learning_rate_at(step, steps + 1));
        model.step(&batch.ids, &rows(&batch.lengths)?, &batch.labels, &optimizer, learning_rate)?;
    }
    let bytes = write_model(&folder, &config, model.weights().into_iter(), ExportDtype::Bf16)?;
    println!("model: {bytes} B in {}", folder.display());
    Ok(())
}
