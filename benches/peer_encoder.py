#!/usr/bin/env python3
"""transformers + PEFT on a BERT classifier, uncut: what shared/peers/torch_split.py has for language models.

    peer_encoder.py --write DIR                              a random model of the MiniLM-L6 shape
    peer_encoder.py --model DIR [--batch 4] [--seq 128] ...  prints one JSON object, with torch_split.py's names
"""
import argparse, json, os, resource, statistics, time

ap = argparse.ArgumentParser()
ap.add_argument("--write"); ap.add_argument("--model"); ap.add_argument("--mode", default="hf")
ap.add_argument("--batch", type=int, default=4); ap.add_argument("--seq", type=int, default=128)
ap.add_argument("--steps", type=int, default=10); ap.add_argument("--warmup", type=int, default=2)
ap.add_argument("--threads", type=int, default=2); ap.add_argument("--rank", type=int, default=8)
ap.add_argument("--compile", action="store_true")
a = ap.parse_args()

import torch
from transformers import BertConfig, BertForSequenceClassification

if a.write:
    torch.manual_seed(1)
    config = BertConfig(vocab_size=30522, hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536,
                        max_position_embeddings=512, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=2)
    BertForSequenceClassification(config).save_pretrained(a.write, safe_serialization=True)
    raise SystemExit

from peft import LoraConfig, get_peft_model

torch.set_num_threads(a.threads)
model = BertForSequenceClassification.from_pretrained(a.model, dtype=torch.float32, num_labels=2)
vocab = model.config.vocab_size
# As cutlayer: the classifier is trained beside the adapters.
model = get_peft_model(model, LoraConfig(r=a.rank, lora_alpha=2 * a.rank, lora_dropout=0.0, target_modules=["query", "value"],
                                         modules_to_save=["classifier"], task_type="SEQ_CLS"))
model.train()
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.01, fused=True)
net = torch.compile(model) if a.compile else model
times = []
for step in range(a.warmup + a.steps):
    torch.manual_seed(step)
    ids, labels = torch.randint(0, vocab, (a.batch, a.seq)), torch.arange(a.batch) % 2
    started = time.monotonic()
    net(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss.backward()
    optimizer.step(); optimizer.zero_grad()
    times.append(1e3 * (time.monotonic() - started))
times = times[a.warmup:]
print(json.dumps(dict(mode="hf", batch=a.batch, seq=a.seq, steps=a.steps, threads=a.threads, compile=a.compile,
                      model=os.path.basename(os.path.normpath(a.model)), step_ms=statistics.median(times), step_ms_best=min(times),
                      peak_rss_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)))
