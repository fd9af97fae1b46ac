"""What the peer checks share: quiet loading, the comparison with cutlayer's logits, one JSON object on stdout.

Run them with the environment that ../shared/peers/setup.sh makes: ~/.cache/cutlayer/peers-venv/bin/python.
"""
import json
import logging
import os
import sys
import warnings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)

import torch
import transformers
from safetensors.torch import load_file

transformers.utils.logging.disable_progress_bar()

# Largest difference of two logits, as a share of the largest expected logit.
TOLERANCE = 1e-4


def read_json(*path):
    with open(os.path.join(*path), encoding="utf-8") as file:
        return json.load(file)


def load_base(model_dir, classes=None):
    """The model in f32, as a classifier if `classes` says of how many; and what its folder lacks or has too much."""
    kind = transformers.AutoModelForCausalLM if classes is None else transformers.AutoModelForSequenceClassification
    extra = {} if classes is None else {"num_labels": classes}
    model, info = kind.from_pretrained(model_dir, dtype=torch.float32, output_loading_info=True, **extra)
    return model.eval(), {name: sorted(info[name]) for name in ("missing_keys", "unexpected_keys", "mismatched_keys")}


def load_adapted(model_dir, adapter_dir):
    """Base and adapter as PEFT loads them, and the names of tensors that did not arrive as the file has them."""
    from peft import PeftModel, get_peft_model_state_dict

    stored = load_file(os.path.join(adapter_dir, "adapter_model.safetensors"))
    heads = [tensor for name, tensor in stored.items() if name.endswith(("model.classifier.weight", "model.score.weight"))]
    classes = None
    if read_json(adapter_dir, "adapter_config.json").get("task_type") == "SEQ_CLS":
        classes = heads[0].shape[0] if heads else 2
    base, _ = load_base(model_dir, classes)
    model = PeftModel.from_pretrained(base, adapter_dir).eval()
    loaded = get_peft_model_state_dict(model)
    wrong = [name for name in set(stored) | set(loaded) if name not in stored or name not in loaded or not torch.equal(stored[name].float(), loaded[name])]
    return model, sorted(wrong), classes


def inputs_from(args):
    """`ids` (and mask, and labels) from the expectation file, or from --ids, or the first 32 ids."""
    if args.expect:
        return load_file(args.expect)
    ids = [int(word) for word in args.ids.split(",")] if args.ids else list(range(32))
    return {"ids": torch.tensor([ids])}


@torch.no_grad()
def logits_of(model, inputs):
    mask = inputs.get("attention_mask")
    extra = {} if mask is None else {"attention_mask": mask.long()}
    return model(input_ids=inputs["ids"].long(), **extra).logits.float()


def compare(found, expected, mask=None):
    """Largest difference and the scale that it is judged by; positions of padding do not count."""
    if found.shape != expected.shape:
        return {"ok": False, "reason": f"logits have shape {list(found.shape)}, expected {list(expected.shape)}"}
    if mask is not None and found.dim() == 3:
        found, expected = found[mask.bool()], expected[mask.bool()]
    scale = expected.abs().max().item()
    error = (found - expected).abs().max().item()
    return {"ok": error <= TOLERANCE * scale, "max_abs_error": error, "scale": scale, "relative_error": error / max(scale, 1e-30)}


def next_token_loss(logits, inputs):
    """Mean cross-entropy of the next token over labels that are not -100, as transformers counts it."""
    labels = inputs.get("labels", inputs["ids"]).long()[:, 1:]
    if "labels" not in inputs and "attention_mask" in inputs:
        labels = labels.masked_fill(inputs["attention_mask"][:, 1:] == 0, -100)
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten(), ignore_index=-100).item()


def add_arguments(parser):
    parser.add_argument("--expect", help="safetensors with ids i64 [B,S], logits f32 [B,S,V] or [B,C], and attention_mask for the latter")
    parser.add_argument("--ids", help="comma-separated token ids, where nothing is expected")


def finish(report):
    """Prints the report and ends the process: 0 if it is ok, 1 if not."""
    print(json.dumps(report))
    sys.exit(0 if report["ok"] else 1)
