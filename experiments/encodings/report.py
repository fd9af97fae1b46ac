"""Makes `tables.md` and `pareto.svg` of `results.jsonl` (sweep.py) and `tensors.jsonl` (the example `encodings`). Needs matplotlib.

    python3 experiments/encodings/report.py [ANOTHER_PICTURE.png ..]

Bytes are whole frames: payload, header, lengths, and labels where they travel. A change is of the held-out loss against the run in
f32 of the same seed; the mean over seeds, and the least and the most in brackets.
"""
import collections
import json
import pathlib
import statistics
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = pathlib.Path(__file__).resolve().parent
TASKS = {
    "e2e": ("E2E, the shipped model", {"sequences": 8, "labels": True, "frames": (1, 1), "local_steps": 20, "sent": 512}),
    "shakespeare": ("Shakespeare, stories260k", {"sequences": 8, "labels": True, "frames": (1, 1), "local_steps": 14}),
    "banking77": ("banking77, MiniLM, U-shape", {"sequences": 16, "labels": False, "frames": (2, 2), "local_steps": 20}),
}
HEADER = 84
HIDDEN = {"e2e": 128, "shakespeare": 64, "banking77": 384}
PLAIN = ("f32", "f32", "f32")
# Okabe and Ito's colours, told apart by people who see few; each also has a shape of its own.
KINDS = [
    ("floats", "#000000", "s", lambda a, g: not a.startswith("int")),
    ("8 and 6 bits", "#56B4E9", "o", lambda a, g: a.startswith(("int8", "int6")) and "topk" not in a and "proj" not in a),
    ("5 bits up", "#009E73", "D", lambda a, g: a.startswith("int5") and "feedback" not in g),
    ("5 bits up, gradients with feedback", "#F0E442", "P", lambda a, g: a.startswith("int5") and "feedback" in g),
    ("4 bits up", "#0072B2", "^", lambda a, g: a.startswith("int4") and "delta" not in a and "moved" not in a),
    ("differences between visits", "#CC79A7", "v", lambda a, g: "delta" in a or "moved" in a),
    ("3 and 2 bits", "#D55E00", "X", lambda a, g: a.startswith(("int3", "int2"))),
    ("topk, projection", "#999999", "*", lambda a, g: True),
]


def frames(row):
    """Whole bytes of a step, up and down."""
    about = TASKS[row["task"]][1]
    up, down = (count * HEADER for count in about["frames"])
    up += 4 * about["sequences"] + (4 * row["tokens"] if about["labels"] else 0)
    if any(word in row["activations"] + row["gradients"] for word in ("delta", "moved", "feedback")):
        up += 8 * about["sequences"]
    return row["bytes_up"] + up, row["bytes_down"] + down


def gathered():
    rows = [json.loads(line) for line in (HERE / "results.jsonl").read_text().splitlines()]
    names = lambda row: (row["activations"], row["gradients"], row["adapters"])
    plain = {(row["task"], row["seed"]): row for row in rows if names(row) == PLAIN}
    found = collections.defaultdict(list)
    for row in rows:
        if (row["task"], row["seed"]) in plain:
            found[(row["task"], *names(row))].append((row, plain[(row["task"], row["seed"])]))
    return found


def bits(activations, gradients):
    """`5|3` for five bits up and three down."""
    if activations.startswith(("f32", "bf16")):
        return activations
    if "proj" in activations or "topk" in activations:
        return "proj" if "proj" in activations else "topk"
    about = {"delta": " delta", "moved": " moved", "stochastic": " by chance"}
    extra = "".join(word for key, word in about.items() if key in activations + gradients)
    return f"{activations[3]}|{gradients[3]}{extra}" + ("" if "hadamard" in activations or "8" in activations[:4] else " unrotated")


def summary(pairs):
    changes = [100 * (row["loss"] / plain["loss"] - 1) for row, plain in pairs]
    up, down = (statistics.mean(frames(row)[way] for row, _ in pairs) for way in (0, 1))
    plain = statistics.mean(sum(frames(row)) for _, row in pairs)
    return {
        "seeds": len(pairs),
        "up": up,
        "down": down,
        "smaller": plain / (up + down),
        "change": statistics.mean(changes),
        "low": min(changes),
        "high": max(changes),
        "loss": statistics.mean(row["loss"] for row, _ in pairs),
        "accuracy": 100 * statistics.mean(row["accuracy"] for row, _ in pairs),
    }


def tables(found):
    for task, (title, about) in TASKS.items():
        rows = {names: summary(pairs) for (name, *names), pairs in ((k, v) for k, v in found.items()) if name == task and len(pairs) >= 3 for names in [tuple(names)]}
        tokens = statistics.mean(row["tokens"] for key, pairs in found.items() if key[0] == task for row, _ in pairs)
        yield f"\n### {title}\n\n{tokens:.0f} tokens of {HIDDEN[task]} features in a step of a client.\n"
        yield "| activations | gradients | adapters | kB up | kB down | MB a round | smaller | loss | against f32 | accuracy | seeds |"
        yield "|---|---|---|---|---|---|---|---|---|---|---|"
        for names, line in sorted(rows.items(), key=lambda item: item[1]["smaller"]):
            round_mb = (line["up"] + line["down"]) * about["local_steps"] / 1e6
            yield (
                f"| {' | '.join(names)} | {line['up'] / 1e3:.1f} | {line['down'] / 1e3:.1f} | {round_mb:.2f} | {line['smaller']:.2f}x | {line['loss']:.4f} "
                f"| {line['change']:+.2f} % ({line['low']:+.2f} to {line['high']:+.2f}) | {line['accuracy']:.1f} % | {line['seeds']} |"
            )


def tensors():
    rows = [json.loads(line) for line in (HERE / "tensors.jsonl").read_text().splitlines()]
    for run in dict.fromkeys(row["run"] for row in rows):
        mine = [row for row in rows if row["run"] == run]
        values = mine[0]["tokens"] * mine[0]["hidden"]
        yield f"\n### {run}: {mine[0]['tokens']} tokens of {mine[0]['hidden']}, computed in {mine[0]['compute_ms']:.0f} ms\n"
        yield "| encoding | bits a value: activations, gradients | error: activations, gradients | encode ms | decode ms | share of the step at 50 Mbit/s |"
        yield "|---|---|---|---|---|---|"
        for row in mine:
            bits = [8 * count / values for count in row["bytes"]]
            codec_ms = sum(row["encode_ms"]) + sum(row["decode_ms"])
            step_ms = row["compute_ms"] + codec_ms + sum(row["bytes"]) * 8e-3 / 50
            yield (
                f"| {row['encoding']} | {bits[0]:.2f}, {bits[1]:.2f} | {row['error'][0]:.4f}, {row['error'][1]:.4f} | "
                f"{row['encode_ms'][0]:.2f}, {row['encode_ms'][1]:.2f} | {row['decode_ms'][0]:.2f}, {row['decode_ms'][1]:.2f} | {100 * codec_ms / step_ms:.1f} % |"
            )


def plot(found):
    plt.rcParams.update({"font.family": "DejaVu Sans", "font.size": 9, "svg.fonttype": "none"})
    figure, axes = plt.subplots(1, 3, figsize=(13, 5.2), sharey=True)
    seen = {}
    for axis, (task, (title, _)) in zip(axes, TASKS.items()):
        axis.axhspan(-5, 0.5, color="#f2f2f2", zorder=0)
        axis.axvline(7, color="#888888", linewidth=0.8, linestyle=":")
        axis.axhline(0, color="#888888", linewidth=0.8)
        points = []
        for (name, activations, gradients, adapters), pairs in found.items():
            if name != task or adapters != "f32" or len(pairs) < 3:
                continue
            line = summary(pairs)
            kind, colour, marker, _ = next(kind for kind in KINDS if kind[3](activations, gradients))
            error = [[line["change"] - line["low"]], [line["high"] - line["change"]]]
            seen[kind] = axis.errorbar(
                line["smaller"], line["change"], yerr=error, fmt=marker, color=colour, markeredgecolor="black",
                markeredgewidth=0.4, ecolor=colour, elinewidth=1, capsize=2, markersize=7, zorder=3,
            )
            points.append((line["smaller"], line["change"], activations, gradients))
        for x, y, activations, gradients in points:
            text = bits(activations, gradients)
            left = "feedback" in gradients or "stochastic" in gradients
            above = text in ("5|4", "bf16", "f32")
            place = {"xytext": (0, 7), "ha": "center"} if above else {"xytext": (-7, -3), "ha": "right"} if left else {"xytext": (7, -3)}
            axis.annotate(text, (x, y), textcoords="offset points", fontsize=7, color="#222222", **place)
        axis.set_title(title, fontsize=10)
        axis.set_yscale("symlog", linthresh=0.5, linscale=1.2)
        axis.set_xlim(0.5, 14.5)
        axis.set_ylim(-2, 120)
        axis.set_xticks([1, 2, 4, 7, 10, 13], ["1x", "2x", "4x", "7x", "10x", "13x"])
        axis.set_yticks([-1, -0.5, 0, 0.5, 1, 3, 10, 30, 100], ["-1 %", "-0.5 %", "0", "+0.5 %", "+1 %", "+3 %", "+10 %", "+30 %", "+100 %"])
        axis.set_xlabel("bytes of a step, times fewer than f32")
        axis.grid(axis="y", color="#e6e6e6", linewidth=0.6, zorder=1)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    axes[0].set_ylabel("held-out loss against f32, three seeds")
    order = [kind[0] for kind in KINDS if kind[0] in seen]
    figure.legend([seen[kind] for kind in order], order, loc="lower center", ncols=len(order), frameon=False, fontsize=8.5)
    figure.suptitle(TITLE, fontsize=12.5, x=0.01, ha="left", fontweight="bold")
    figure.text(0.01, 0.905, SUBTITLE, fontsize=8.5, color="#444444")
    figure.tight_layout(rect=(0, 0.06, 1, 0.93))
    for path in (HERE / "pareto.svg", *map(pathlib.Path, sys.argv[1:])):
        figure.savefig(path, dpi=110)


SUBTITLE = (
    "5|3: integers of five bits for activations, of three for gradients. Bars: least and most of the seeds. Grey: within half a percent of f32; "
    "dotted: a seventh of its bytes."
)
TITLE = "Five bits up and three or four down: seven to nine times fewer bytes for half a percent of loss at most"


def main():
    found = gathered()
    lines = ["<!-- made by report.py -->", "## Quality and bytes", *tables(found), "", "## Real activations and gradients", *tensors()]
    (HERE / "tables.md").write_text("\n".join(lines) + "\n")
    plot(found)


if __name__ == "__main__":
    main()
