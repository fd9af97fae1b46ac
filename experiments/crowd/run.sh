#!/usr/bin/env bash
# Runs experiments/crowd/run.toml and reads the server's memory at each commit. Prints what README.md has.
#   bash experiments/crowd/run.sh [RUNS_FOLDER]
set -euo pipefail
here=$(cd "$(dirname "$0")/../.." && pwd)
runs=${1:-$(mktemp -d)}
program=${CUTLAYER:-${CARGO_TARGET_DIR:-$here/target}/release/cutlayer}
mkdir -p "$runs"
rm -rf "$runs/crowd"
"$program" run "$here/experiments/crowd/run.toml" --runs "$runs" --quiet --format json "${@:2}" >"$runs/out.json" &
launcher=$!
python3 - "$launcher" "$runs/crowd" <<'PY'
import json, os, sys, time, subprocess, pathlib
launcher, folder = int(sys.argv[1]), pathlib.Path(sys.argv[2])
metrics = folder / "metrics.jsonl"

def server():
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            parent = int(pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
        if parent == launcher and b"serve" in words:
            return pid

def rss(pid):
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024

def alive(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False

while not metrics.exists() and alive(launcher):
    time.sleep(0.1)
held, read, pid, steps, refused = {}, 0, None, set(), []
doubled = 0
while True:
    running = alive(launcher)
    with open(metrics) as file:
        file.seek(read)
        whole = file.read()
    whole = whole[: whole.rfind("\n") + 1]
    read += len(whole.encode())
    for line in whole.splitlines():
        event = json.loads(line)
        if event["event"] == "committed":
            pid = pid or server()
            if pid and alive(pid):
                held[event["round"]] = (rss(pid), event["updates"])
        if event["event"] == "step" and event["from"] == "server":
            key = (event["client"], event["round"], event["step"])
            doubled += key in steps
            steps.add(key)
        if event["event"] in ("left", "refused", "late"):
            refused.append(event)
    if not running:
        break
    time.sleep(0.05)
print("| after round | updates | server's memory, MiB |\n|---|---|---|")
for round in [1, 5, 10, 20, 30, 40, 50]:
    if round in held:
        print(f"| {round} | {held[round][1]} | {held[round][0]:.1f} |")
if 10 in held and 50 in held:
    print(f"\ngrowth from round 10 to 50: {100 * (held[50][0] / held[10][0] - 1):.1f} %")
print(f"steps: {len(steps)}, of 100 x 50; told twice: {doubled}; clients that left early, were late or refused: {len(refused)}")
PY
wait "$launcher"
python3 -c 'import json,sys; out=json.load(open(sys.argv[1])); print("rounds:", out.get("rounds_done", out.get("rounds")), "seconds:", out.get("seconds"))' "$runs/out.json" || head -c 600 "$runs/out.json"
