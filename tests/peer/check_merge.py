#!/usr/bin/env python3
"""Is a folder that `cutlayer merge` wrote the model that base + adapter are?

    check_merge.py MERGED_DIR [--expect logits.safetensors | --ids 1,2,3] [--base MODEL_DIR --adapter ADAPTER_DIR]

Loads the folder in transformers alone: no key may be missing, unexpected or of another shape. With --expect the logits must equal
cutlayer's, with --base and --adapter those of PEFT, to 1e-4 of their scale. Prints one JSON object; exit 0 if all is well, 1 if not.
"""
import argparse
import sys

sys.dont_write_bytecode = True

from common import add_arguments, compare, finish, inputs_from, load_adapted, load_base, logits_of, next_token_loss, read_json


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("merged_dir")
    parser.add_argument("--base", help="model folder that was merged into")
    parser.add_argument("--adapter", help="adapter folder that was merged")
    add_arguments(parser)
    args = parser.parse_args()
    if bool(args.base) != bool(args.adapter):
        parser.error("--base and --adapter go together")

    config = read_json(args.merged_dir, "config.json")
    classifier = config["architectures"][0].endswith("ForSequenceClassification")
    model, loading = load_base(args.merged_dir, len(config["id2label"]) if classifier else None)
    # A buffer of old BERT checkpoints, which transformers now computes.
    loading["unexpected_keys"] = [key for key in loading["unexpected_keys"] if not key.endswith("position_ids")]
    inputs = inputs_from(args)
    logits = logits_of(model, inputs)
    report = {"ok": True, "architecture": config["architectures"][0], "shape": list(logits.shape), **loading}
    if not classifier:
        report["loss"] = next_token_loss(logits, inputs)
    mask = inputs.get("attention_mask")
    checks = []
    if args.expect:
        checks.append(("cutlayer", inputs["logits"]))
    if args.adapter:
        adapted, _, _ = load_adapted(args.base, args.adapter)
        checks.append(("peft", logits_of(adapted, inputs)))
    for name, expected in checks:
        report[name] = compare(logits, expected, mask)
        report["ok"] = report["ok"] and report[name]["ok"]
    if not checks:
        report["logits"] = logits.flatten()[:16].tolist()
    report["ok"] = report["ok"] and not any(loading.values())
    finish(report)


if __name__ == "__main__":
    main()
