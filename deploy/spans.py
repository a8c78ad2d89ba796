"""Reads the ends of spans from logs, for bench-overhead.sh: how long was something under way to NATS while workers were idle?"""

import json
import re
import sys
from datetime import datetime

UNITS = {"ns": 1e-9, "µs": 1e-6, "ms": 1e-3, "s": 1.0}
SENT = ("append", "heartbeat", "report")
WORKERS = 2


def seconds(text):
    value, unit = re.fullmatch(r"([0-9.]+)(.*)", text).groups()
    return float(value) * UNITS[unit]


def spans(path):
    """Name, begin and end (in seconds) of each span that ended."""
    for line in open(path, encoding="utf-8"):
        entry = json.loads(line)
        if entry.get("message") == "close":
            end = datetime.fromisoformat(entry["timestamp"].replace("Z", "+00:00")).timestamp()
            yield entry["span"]["name"], end - seconds(entry["time.busy"]) - seconds(entry["time.idle"]), end


def shares(path, wall):
    """Share of the wall time, in percent: blocked; each kind under way; and how often."""
    edges, counts = [], {}
    for name, begin, end in spans(path):
        counts[name] = counts.get(name, 0) + 1
        edges += [(begin, name, 1), (end, name, -1)]
    edges.sort()
    if not all(counts.get(name) for name in ("append", "report", "attempt")):
        sys.exit(f"{path} lacks spans: {counts}")
    open_now = dict.fromkeys((*SENT, "attempt"), 0)
    total = dict.fromkeys(("blocked", "journal or heartbeat blocked", *SENT), 0.0)
    before = edges[0][0]
    for at, name, step in edges:
        idle = max(0, WORKERS - open_now["attempt"]) / WORKERS
        for kind in SENT:
            total[kind] += (at - before) * (open_now[kind] > 0)
        total["blocked"] += (at - before) * idle * any(open_now[kind] for kind in SENT)
        total["journal or heartbeat blocked"] += (at - before) * idle * (open_now["append"] > 0 or open_now["heartbeat"] > 0)
        before = at
        if name in open_now:
            open_now[name] += step
    return {name: 100 * took / wall for name, took in total.items()}, counts


def main():
    limit, rounds, folder = float(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    runs = []
    for number in range(1, rounds + 1):
        wall = int(open(f"{folder}/wall.{number}").read()) / 1e9
        share, counts = shares(f"{folder}/log.{number}", wall)
        runs.append((share["journal or heartbeat blocked"], wall, share, counts))
    runs.sort(key=lambda run: run[0])
    blocked, wall, share, counts = runs[len(runs) // 2]
    print(f"  wall {wall:.3f} s; blocked on journal and heartbeats {blocked:.2f} % (runs: {', '.join(f'{run[0]:.2f}' for run in runs)}; limit {limit:g} %)")
    print(f"  blocked on these or reports {share['blocked']:.2f} %; under way at all: " + ", ".join(f"{kind} {share[kind]:.2f} % ({counts.get(kind, 0)})" for kind in SENT))
    sys.exit(blocked > limit)


main()
