"""The table of runs over each link: table.py FOLDER. Steps as their clients saw them; bytes as UDP carried them."""

import json
import pathlib
import statistics
import sys

PROFILES = ["loopback", "fibre", "wifi", "5g", "lte", "satellite", "train"]


def main(folder):
    print("| link | up, down, round trip | tokens/s | of loopback | step wait, ms (median) | up, kB a step | down, kB a step | lost | loss at the end |")
    print("|---|---|---|---|---|---|---|---|---|")
    fastest = None
    for profile in PROFILES:
        with open(folder / profile / "metrics.jsonl") as lines:
            told = [json.loads(line) for line in lines]
        summary = json.loads((folder / profile / "summary.json").read_text())
        steps = [event for event in told if event["event"] == "step" and event["from"] != "server"]
        begun = [event for event in told if event["event"] == "link"]
        ended = [event for event in told if event["event"] == "link_ended"]
        rate = sum(step["tokens"] for step in steps) / sum(row["seconds"] for row in summary["rounds"])
        fastest = fastest or rate
        passed = {lane: sum(link[lane]["bytes_in"] for link in ended) / len(steps) / 1e3 for lane in ("up", "down")}
        lost = sum(link[lane]["lost"] + link[lane]["dropped_queue"] for link in ended for lane in ("up", "down"))
        sent = sum(link[lane]["packets_in"] for link in ended for lane in ("up", "down"))
        link = begun[0]
        trip = milliseconds(link["up"]["delay"]) + milliseconds(link["down"]["delay"])
        numbers = f"{link['up']['rate'] or '-'}, {link['down']['rate'] or '-'}, {trip:g} ms"
        wait = statistics.median(step["wait_ms"] for step in steps)
        loss = summary["rounds"][-1]["loss"]
        print(
            f"| {profile} | {numbers} | {rate:.0f} | {rate / fastest:.2f} | {wait:.0f} | {passed['up']:.0f} | {passed['down']:.0f} "
            f"| {100 * lost / sent:.2f} % | {loss:.4f} |"
        )


def milliseconds(text):
    for unit, factor in (("us", 1e-3), ("ms", 1.0), ("s", 1e3)):
        if text.endswith(unit):
            return float(text[: -len(unit)]) * factor
    raise ValueError(text)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
