"""Sends many requests at once, streams and whole answers by turns, and watches the memory of two processes.

Crowd after crowd, each with prompts of its own: if anything piled up, their peaks would rise. Standard library only.
"""

import argparse
import asyncio
import json
import pathlib
import resource
import time

TOKENS = 32
# What may be refused is bounded from below too: the endpoint has room for so many.
ROOM = 128 + 640
CROWDS = 12
# The second half of the crowds may raise no peak by more: the allocator keeps what its worst moment took.
GROWTH_MAX = 1.1


def rss_mib(pid):
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"process {pid} is gone")


async def ask(address, turn, number):
    """Status and seconds of one request."""
    began = time.monotonic()
    reader, writer = await asyncio.open_connection(*address, limit=1 << 20)
    stream = number % 2 == 0
    # Every prompt is its own, and the end of a text is not taken: each answer costs the same.
    body = {"model": "quickstart", "prompt": f"In crowd {turn}, the weather in place {number} is", "max_tokens": TOKENS, "seed": number,
            "stream": stream, "logit_bias": {"2": -100}}
    sent = json.dumps(body)
    head = f"POST /v1/completions HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(sent)}\r\n\r\n"
    writer.write((head + sent).encode())
    await writer.drain()
    answer = (await reader.read(-1)).decode()
    writer.close()
    status = int(answer.split(" ", 2)[1])
    text = answer.split("\r\n\r\n", 1)[1]
    if status == 200 and stream:
        assert text.rstrip().endswith("data: [DONE]"), text[-300:]
    elif status == 200:
        assert json.loads(text)["usage"]["completion_tokens"] == TOKENS, text
    else:
        assert status == 429 and json.loads(text)["error"]["message"], (status, text)
    return status, time.monotonic() - began


async def watch(pids, peaks, done):
    while not done.is_set():
        for pid in pids:
            peaks[pid] = max(peaks[pid], rss_mib(pid))
        await asyncio.sleep(0.02)


async def crowd(address, pids, requests, turn):
    before = {pid: rss_mib(pid) for pid in pids}
    peaks, done = dict(before), asyncio.Event()
    watcher = asyncio.create_task(watch(pids, peaks, done))
    began = time.monotonic()
    answers = await asyncio.gather(*(ask(address, turn, number) for number in range(requests)))
    seconds = time.monotonic() - began
    done.set()
    await watcher
    return before, peaks, {pid: rss_mib(pid) for pid in pids}, answers, seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name, kind in (("--url", str), ("--api", int), ("--host", int), ("--requests", int)):
        parser.add_argument(name, type=kind, required=True)
    args = parser.parse_args()
    # A socket for each.
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    host, port = args.url.split("//")[1].split("/")[0].rsplit(":", 1)
    pids = {args.api: "api", args.host: "host"}
    print("| crowd | answered | 429 | other | seconds | tokens/s | slowest answer, s |\n|---|---|---|---|---|---|---|")
    memory, all_peaks = [], []
    for turn in range(1, CROWDS + 1):
        before, peaks, after, answers, seconds = asyncio.run(crowd((host, int(port)), list(pids), args.requests, turn))
        all_peaks.append(peaks)
        count = lambda status: sum(1 for answer in answers if answer[0] == status)
        answered, busy = count(200), count(429)
        slowest = max(answer[1] for answer in answers if answer[0] == 200)
        others = args.requests - answered - busy
        print(f"| {turn} | {answered} | {busy} | {others} | {seconds:.1f} | {answered * TOKENS / seconds:.0f} | {slowest:.1f} |")
        memory += [f"| {turn} | {name} | {before[pid]:.1f} | {peaks[pid]:.1f} | {after[pid]:.1f} |" for pid, name in pids.items()]
        assert others == 0 and answered >= min(args.requests, ROOM), "somebody was not answered who had a place"
    print("\n| crowd | process | before, MiB | peak, MiB | after, MiB |\n|---|---|---|---|---|")
    print("\n".join(memory))
    for pid, name in pids.items():
        growth = all_peaks[-1][pid] / all_peaks[CROWDS // 2 - 1][pid]
        print(f"\n{name}: {100 * (growth - 1):.1f} % from crowd {CROWDS // 2} to {CROWDS}")
        assert growth <= GROWTH_MAX, f"the memory of {name} grows"


main()
