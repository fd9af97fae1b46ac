#!/usr/bin/env python3
"""Greedy continuations by transformers with a KV cache, one line of JSON a model: what generation must equal token for token.

    make_greedy.py NAME=MODEL_FOLDER... > crates/model/tests/greedy.json
"""
import json
import sys

import torch
from transformers import AutoModelForCausalLM

torch.manual_seed(0)
torch.set_num_threads(1)
lines = []
for named in sys.argv[1:]:
    name, folder = named.split("=", 1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    positions = getattr(model.config, "max_position_embeddings", None) or model.config.n_positions
    prompt = [(7 * i + 3) % model.config.vocab_size for i in range(19)]
    new = min(200, positions - len(prompt))
    with torch.no_grad():
        out = model.generate(
            torch.tensor([prompt]), max_new_tokens=new, min_new_tokens=new, do_sample=False, use_cache=True, pad_token_id=0, eos_token_id=None
        )[0].tolist()
        # How close the second likeliest ever came: below what rounding moves, two right answers could differ.
        logits = model(torch.tensor([out])).logits[0, len(prompt) - 1 : -1]
        best = logits.topk(2, dim=-1).values
        margin = (best[:, 0] - best[:, 1]).min().item()
    lines.append(f'  {json.dumps(name)}: {{"margin": {margin:.6f}, "prompt": {json.dumps(prompt)}, "greedy": {json.dumps(out[len(prompt):])}}}')
print("{\n" + ",\n".join(lines) + "\n}")
