#!/usr/bin/env python3
"""The central LoRA run that a federated one of the same budget is measured against.

    central_bert.py MODEL_DIR --train A.jsonl [B.jsonl ...] --test T.jsonl [...] [--rank 8 --alpha 16 --targets query,value]
                    [--steps 300 --batch 32 --lr 1e-3 --seed 0] [--init ADAPTER_DIR] [--out ADAPTER_DIR]

transformers + peft, one process, all training data in one pot, each line {"text": .., "label": ..}. As cutlayer does: the base is frozen
and without dropout, LoRA and the classifier train, AdamW with decoupled decay, gradients clipped to a norm, batches padded to their own
longest sequence. --init starts from an adapter folder (the same start as a cutlayer run), --out keeps the result.
Prints one JSON object with the accuracy and loss on the test data; the curve goes to stderr.
"""
import argparse
import json
import math
import os
import random
import sys
import time

sys.dont_write_bytecode = True

from common import finish, load_base

import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from tokenizers import Tokenizer


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir")
    parser.add_argument("--train", nargs="+", required=True)
    parser.add_argument("--test", nargs="+", required=True)
    parser.add_argument("--text", default="text", help="name of the text field")
    parser.add_argument("--label", default="label", help="name of the label field")
    parser.add_argument("--labels", help="JSON list of the classes in order; otherwise those of --init, or the sorted labels of the training data")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--alpha", type=float, default=16.0)
    parser.add_argument("--rslora", action="store_true")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--targets", default="query,value")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--schedule", choices=["constant", "linear", "cosine"], default="constant")
    parser.add_argument("--warmup-steps", type=int, default=0)
    parser.add_argument("--weight-decay", type=float, default=0.0)
    parser.add_argument("--beta1", type=float, default=0.9)
    parser.add_argument("--beta2", type=float, default=0.999)
    parser.add_argument("--eps", type=float, default=1e-8)
    parser.add_argument("--clip-norm", type=float, default=1.0, help="0 turns clipping off")
    parser.add_argument("--tokens-max", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--evaluate-every", type=int, default=0, help="steps between evaluations on the way; 0 = only at the end")
    parser.add_argument("--threads", type=int, default=0, help="0 leaves torch's choice")
    parser.add_argument("--init", help="adapter folder to start from")
    parser.add_argument("--out", help="where to save the adapter")
    return parser.parse_args()


def read_examples(paths, args, tokenizer, classes):
    examples = []
    for path in paths:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                record = json.loads(line)
                label = record[args.label]
                if label not in classes:
                    sys.exit(f"{path}:{number}: label {label!r} is not among the {len(classes)} classes")
                examples.append((tokenizer.encode(record[args.text]).ids, classes[label]))
    return examples


def labels_of(args):
    # The classes of an adapter come with it.
    path = args.labels or (args.init and os.path.join(args.init, "labels.json"))
    if args.labels or (path and os.path.exists(path)):
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    found = set()
    for path in args.train:
        with open(path, encoding="utf-8") as file:
            found.update(json.loads(line)[args.label] for line in file if line.strip())
    return sorted(found)


def collate(examples, pad):
    longest = max(len(ids) for ids, _ in examples)
    ids = torch.tensor([ids + [pad] * (longest - len(ids)) for ids, _ in examples])
    mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in examples])
    return ids, mask, torch.tensor([label for _, label in examples])


def batches(examples, size, seed):
    """Endless epochs of shuffled examples; a batch may reach into the next epoch."""
    order, shuffle = [], random.Random(seed)
    while True:
        while len(order) < size:
            epoch = list(range(len(examples)))
            shuffle.shuffle(epoch)
            order += epoch
        yield [examples[index] for index in order[:size]]
        del order[:size]


@torch.no_grad()
def evaluate(model, examples, pad, size=128):
    model.eval()
    loss, correct = 0.0, 0
    by_length = sorted(examples, key=lambda example: len(example[0]))
    for start in range(0, len(by_length), size):
        ids, mask, labels = collate(by_length[start:start + size], pad)
        logits = model(input_ids=ids, attention_mask=mask).logits
        loss += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
        correct += (logits.argmax(-1) == labels).sum().item()
    model.train()
    return loss / len(examples), correct / len(examples)


def rate_at(step, args):
    """Learning rate of a step, counted from 0."""
    if step < args.warmup_steps:
        return args.lr * (step + 1) / args.warmup_steps
    done = (step - args.warmup_steps) / max(1, args.steps - args.warmup_steps)
    return args.lr * {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * done))}[args.schedule]


def adapted(args, classes):
    torch.manual_seed(args.seed)
    base, _ = load_base(args.model_dir, classes)
    for module in base.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "dropout_prob"):
            module.dropout_prob = 0.0
    config = LoraConfig(r=args.rank, lora_alpha=args.alpha, use_rslora=args.rslora, lora_dropout=args.dropout,
                        target_modules=args.targets.split(","), task_type="SEQ_CLS")
    model = get_peft_model(base, config)
    if args.init:
        set_peft_model_state_dict(model, load_file(f"{args.init}/adapter_model.safetensors"))
    return model.train()


def main():
    args = arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    names = labels_of(args)
    classes = {name: index for index, name in enumerate(names)}
    tokenizer = Tokenizer.from_file(f"{args.model_dir}/tokenizer.json")
    tokenizer.no_padding()
    tokenizer.enable_truncation(args.tokens_max)
    pad = tokenizer.token_to_id("[PAD]") or 0
    train = read_examples(args.train, args, tokenizer, classes)
    test = read_examples(args.test, args, tokenizer, classes)

    model = adapted(args, len(names))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=args.lr, betas=(args.beta1, args.beta2), eps=args.eps, weight_decay=args.weight_decay)
    before = evaluate(model, test, pad)
    start, losses = time.monotonic(), []
    for step, examples in zip(range(args.steps), batches(train, args.batch, args.seed)):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, args)
        ids, mask, labels = collate(examples, pad)
        loss = torch.nn.functional.cross_entropy(model(input_ids=ids, attention_mask=mask).logits, labels)
        loss.backward()
        if args.clip_norm:
            torch.nn.utils.clip_grad_norm_(trained, args.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if args.evaluate_every and (step + 1) % args.evaluate_every == 0 and step + 1 < args.steps:
            on_the_way = evaluate(model, test, pad)
            print(f"step {step + 1}: train loss {losses[-1]:.4f}, test loss {on_the_way[0]:.4f}, accuracy {on_the_way[1]:.4f}", file=sys.stderr)
    seconds = time.monotonic() - start
    test_loss, accuracy = evaluate(model, test, pad)
    if args.out:
        model.save_pretrained(args.out)
        with open(f"{args.out}/labels.json", "w", encoding="utf-8") as file:
            json.dump(names, file)
    finish({
        "ok": math.isfinite(test_loss), "accuracy": accuracy, "loss": test_loss, "accuracy_before": before[1], "loss_before": before[0],
        "classes": len(names), "train_examples": len(train), "test_examples": len(test), "steps": args.steps, "batch": args.batch,
        "trained_parameters": sum(parameter.numel() for parameter in trained), "train_loss_first": losses[:1], "train_loss_last": losses[-1:],
        "seconds": seconds,
    })


if __name__ == "__main__":
    main()
