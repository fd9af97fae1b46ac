#!/usr/bin/env python3
"""Does an adapter folder of cutlayer mean the same to PEFT?

    check_peft.py MODEL_DIR ADAPTER_DIR [--expect logits.safetensors | --ids 1,2,3]

Loads base and adapter in transformers + peft; every tensor of the folder must arrive in the model, and none be missing.
With --expect the logits must equal cutlayer's to 1e-4 of their scale. Prints one JSON object; exit 0 if all is well, 1 if not.
"""
import argparse
import sys

sys.dont_write_bytecode = True

from common import add_arguments, compare, finish, inputs_from, load_adapted, logits_of, next_token_loss


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir")
    parser.add_argument("adapter_dir")
    add_arguments(parser)
    args = parser.parse_args()

    model, wrong, classes = load_adapted(args.model_dir, args.adapter_dir)
    inputs = inputs_from(args)
    logits = logits_of(model, inputs)
    report = {"ok": True, "task": "CAUSAL_LM" if classes is None else "SEQ_CLS", "shape": list(logits.shape), "wrong_tensors": wrong}
    if classes is None:
        report["loss"] = next_token_loss(logits, inputs)
    if args.expect:
        report.update(compare(logits, inputs["logits"], inputs.get("attention_mask")))
    else:
        report["logits"] = logits.flatten()[:16].tolist()
    report["ok"] = report["ok"] and not wrong
    finish(report)


if __name__ == "__main__":
    main()
