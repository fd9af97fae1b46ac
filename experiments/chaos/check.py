"""Holds runs under chaos against the calm one: check.py FOLDER, with the runs calm, wild-1, wild-2 and so on in it.

A round that was reported committed must be there after every later start of the server, and be the calm run's to the last digit of its
held-out loss; the adapter must be the calm run's to the last byte.
"""

import json
import pathlib
import sys

ADAPTER = "adapter/adapter_model.safetensors"


def events(run):
    with open(run / "metrics.jsonl") as lines:
        return [json.loads(line) for line in lines]


def losses(told):
    return [(event["round"], event["loss"]) for event in told if event["event"] == "evaluated" and event["from"] == "server"]


def lost_rounds(told):
    """Rounds that were reported committed, and were not there when the server came back."""
    committed, lost = 0, 0
    for event in told:
        if event["event"] == "committed":
            committed = max(committed, event["round"])
        elif event["event"] == "resumed":
            lost += max(0, committed - event["round"])
    return lost


def main(folder):
    calm = events(folder / "calm")
    expected, adapter = dict(losses(calm)), (folder / "calm" / ADAPTER).read_bytes()
    rows, sums = [], [0] * 6
    for run in sorted(folder.glob("wild-*"), key=lambda run: int(run.name.split("-")[1])):
        told = events(run)
        killed = [event["process"] for event in told if event["event"] == "killed"]
        server = killed.count("server")
        committed = len({event["round"] for event in told if event["event"] == "committed"})
        other = sum(loss != expected[number] for number, loss in losses(told))
        same = (run / ADAPTER).read_bytes() == adapter and committed == max(expected)
        row = [len(killed), server, committed, lost_rounds(told), other, int(same)]
        sums = [total + value for total, value in zip(sums, row)]
        rows.append((run.name, row, told[-1]["at_s"]))
    print("| run | kills | of the server | rounds committed | lost | other than the calm run's | adapter the same | s |")
    print("|---|---|---|---|---|---|---|---|")
    for name, row, seconds in rows:
        print(f"| {name} | " + " | ".join(map(str, row[:5])) + f" | {'yes' if row[5] else 'NO'} | {seconds:.1f} |")
    print(f"| all {len(rows)} | " + " | ".join(map(str, sums[:5])) + f" | {sums[5]} of {len(rows)} | {sum(row[2] for row in rows):.1f} |")
    print(f"calm: {calm[-1]['at_s']:.1f} s")
    return 0 if rows and not sums[3] and not sums[4] and sums[5] == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main(pathlib.Path(sys.argv[1])))
