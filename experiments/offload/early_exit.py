#!/usr/bin/env python3
"""A compact model out of a larger one: its first blocks and its head, as an early exit without training: early_exit.py MODEL BLOCKS OUT"""
import json, re, shutil, struct, sys
from pathlib import Path

model, blocks, out = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
out.mkdir(parents=True, exist_ok=True)
config = json.loads((model / "config.json").read_text())
config["num_hidden_layers"] = blocks
(out / "config.json").write_text(json.dumps(config, indent=2))
for file in model.glob("*.json"):
    if file.name != "config.json":
        shutil.copyfile(file, out / file.name)
whole = (model / "model.safetensors").read_bytes()
size = struct.unpack("<Q", whole[:8])[0]
header, body = json.loads(whole[8 : 8 + size]), whole[8 + size :]
kept, data = {}, b""
for name, about in header.items():
    found = re.search(r"layers\.(\d+)\.", name)
    if name == "__metadata__" or (found and int(found.group(1)) >= blocks):
        continue
    start, end = about["data_offsets"]
    kept[name] = {**about, "data_offsets": [len(data), len(data) + end - start]}
    data += body[start:end]
text = json.dumps(kept).encode()
text += b" " * (-len(text) % 8)
(out / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
