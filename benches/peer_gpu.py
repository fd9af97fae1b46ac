#!/usr/bin/env python3
"""transformers + PEFT in bf16 on a CUDA device, eager or compiled: the peer of benches/gpu.sh. Prints one row of its table.

The shapes are those of `cutlayer bench step --shape`; weights are random.
"""
import argparse, statistics, time

ap = argparse.ArgumentParser()
ap.add_argument("--shape", choices=["smollm2-135m", "llama-1b"], required=True); ap.add_argument("--mode", choices=["eager", "compile"], default="eager")
ap.add_argument("--batch", type=int, default=8); ap.add_argument("--seq", type=int, default=512)
ap.add_argument("--steps", type=int, default=30); ap.add_argument("--warmup", type=int, default=5)
a = ap.parse_args()

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

hidden, blocks, heads, kv_heads, inner, vocab, tied = {
    "smollm2-135m": (576, 30, 9, 3, 1536, 49152, True),
    "llama-1b": (2048, 22, 32, 4, 5632, 32000, False),
}[a.shape]
torch.manual_seed(1)
config = LlamaConfig(hidden_size=hidden, num_hidden_layers=blocks, num_attention_heads=heads, num_key_value_heads=kv_heads, intermediate_size=inner,
                     vocab_size=vocab, tie_word_embeddings=tied, max_position_embeddings=2048)
with torch.device("cuda"):
    model = LlamaForCausalLM(config).to(torch.bfloat16)
model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
step_model = torch.compile(model) if a.mode == "compile" else model
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
ids = torch.randint(0, vocab, (a.batch, a.seq), device="cuda")
times = []
for step in range(a.warmup + a.steps):
    torch.cuda.synchronize(); started = time.perf_counter()
    loss = step_model(input_ids=ids, labels=ids).loss
    loss.backward(); optimizer.step(); optimizer.zero_grad()
    torch.cuda.synchronize()
    if step >= a.warmup: times.append((time.perf_counter() - started) * 1e3)
ms = statistics.median(times)
print(f"| {a.shape} | PyTorch bf16 {a.mode} | {ms:,.1f} | {a.batch * a.seq / ms * 1e3:,.0f} | | | peak {torch.cuda.max_memory_allocated() / 2**20:,.0f} MiB")
