"""Runs every encoding of `grid.txt` on three seeds and adds a line a run to `results.jsonl`; what is there already is not run again.

    CUTLAYER_DATA=../shared/data python3 experiments/encodings/sweep.py target/release/cutlayer [TASK ..]

A line of the grid: the tasks, the encoding of activations, that of gradients, that of adapters.
"""
import json
import os
import pathlib
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
RESULTS = HERE / "results.jsonl"
SEEDS = (1, 2, 3)


def grid():
    for line in (HERE / "grid.txt").read_text().splitlines():
        words = line.split("#")[0].split()
        if words:
            tasks, activations, gradients, adapters = words
            for task in tasks.split(","):
                yield task, activations, gradients, adapters


def run(binary, task, seed, encodings):
    with tempfile.TemporaryDirectory() as folder:
        named = zip(("activations", "gradients", "adapters"), encodings)
        changes = [f"--set=link.{part}={json.dumps(name)}" for part, name in named] + [f"--set=seed={seed}"]
        command = [binary, "run", str(HERE / f"{task}.toml"), "--format", "json", "-q", "--runs", folder, *changes]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "RUST_LOG": "error"})
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)}\n{done.stderr}")
        summary = json.loads(done.stdout)
        events = map(json.loads, pathlib.Path(summary["folder"], "metrics.jsonl").read_text().splitlines())
        kept = [event for event in events if event["event"] == "step" and event["from"] == "server"]
    steps = len(kept)
    return {
        "task": task,
        "seed": seed,
        "activations": encodings[0],
        "gradients": encodings[1],
        "adapters": encodings[2],
        "loss_start": summary["rounds"][0]["loss"],
        "loss": summary["rounds"][-1]["loss"],
        "accuracy": summary["rounds"][-1]["accuracy"],
        "scored": summary["rounds"][-1]["scored"],
        "steps": steps,
        "tokens": sum(event["tokens"] for event in kept) / steps,
        "bytes_up": sum(event["bytes_up"] for event in kept) / steps,
        "bytes_down": sum(event["bytes_down"] for event in kept) / steps,
        "compute_ms": sum(event["compute_ms"] for event in kept) / steps,
        "seconds": summary["seconds"],
    }


def main():
    binary, *tasks = sys.argv[1:]
    done = set()
    if RESULTS.exists():
        for line in RESULTS.read_text().splitlines():
            row = json.loads(line)
            done.add((row["task"], row["seed"], row["activations"], row["gradients"], row["adapters"]))
    for seed in SEEDS:
        for task, *encodings in grid():
            if (tasks and task not in tasks) or (task, seed, *encodings) in done:
                continue
            row = run(binary, task, seed, encodings)
            with RESULTS.open("a") as out:
                out.write(json.dumps(row) + "\n")
            print(f"{task} seed {seed} {' '.join(encodings)}: loss {row['loss']:.4f}, {row['seconds']:.1f} s", flush=True)


if __name__ == "__main__":
    main()
