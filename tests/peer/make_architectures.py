#!/usr/bin/env python3
"""make_architectures.py MODEL_DIR OUT.safetensors: logits by transformers for the sequences of `random::ids` in the model's tests.

Decoders: [20, vocab], every real token. BERT: [2, classes], with the classifier of `random::classifier`.
"""
import sys
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, BertForSequenceClassification

model_dir, out = sys.argv[1:]
torch.set_num_threads(1)
lengths = [13, 7]
ids = [3 + (i * i * 5 + i * 31) % 90 for i in range(20)]
rows = [ids[:13], ids[13:]]
config = AutoConfig.from_pretrained(model_dir)
with torch.no_grad():
    if config.model_type == "bert":
        model = BertForSequenceClassification(config)
        missing, unexpected = model.load_state_dict(load_file(model_dir + "/model.safetensors"), strict=False)
        assert not unexpected and set(missing) <= {"classifier.weight", "classifier.bias"}, (missing, unexpected)
        values = lambda n: torch.tensor([((i * 37 % 101) / 101.0 - 0.5) * 0.6 for i in range(n)], dtype=torch.float32)
        hidden, classes = config.hidden_size, config.num_labels
        model.classifier.weight.copy_(values(classes * hidden).reshape(classes, hidden))
        model.classifier.bias.copy_(values(classes))
        model.eval()
        logits = torch.cat([model(input_ids=torch.tensor([row])).logits for row in rows])
    else:
        model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, attn_implementation="eager").eval()
        logits = torch.cat([model(input_ids=torch.tensor([row])).logits[0] for row in rows])
save_file({"logits": logits.contiguous()}, out)
print(config.model_type, tuple(logits.shape), float(logits.abs().max()))
