#!/usr/bin/env python3
"""bench_table.py FILE: the table of bars of bench.sh, from its lines of JSON. A time of an iteration is that of the
slowest rank. What is compared was measured alternately in one run."""
import json
import statistics
import sys

LEAST_SHARE = {"2x2x2": 0.97, "3x3x3": 0.94, "4x2": 0.95}


def row(what, bar, value, met):
    print(f"| {what} | {bar} | {value} | {'yes' if met else 'NO'} |")


def ratio_row(what, ratio, least):
    row(what, f">= {least}x", f"{ratio:.2f}x", ratio >= least)


def speeds(r, peers):
    name, share = r["scenario"], r.get("share_of_bound", 0)
    best = 100 * share * r["median_us"] / r["min_us"]
    row(f"{name}, {r['bytes'] >> 20} MiB: share of what the links allow", f">= {100 * LEAST_SHARE[name]:.0f}%",
        f"{100 * share:.1f}% (best {best:.1f}%)", share >= LEAST_SHARE[name])
    forced = {a: m["ratio"] for a, m in peers.items() if a != "default"}
    if name == "2x2x2" and forced:
        best = min(forced, key=forced.get)
        ratio_row(f"{name}, against Open MPI's best ({best})", forced[best], 2.9)
        ratio_row(f"{name}, against Open MPI's default", peers["default"]["ratio"], 5.5)
    if name == "3x3x3" and "ring" in forced:
        ratio_row(f"{name}, against Open MPI's ring", forced["ring"], 5.5)


def down(r):
    t = r["times_us"]
    at = t.index(max(t))  # when it was cut
    before, after = t[:at], t[at + 1:]
    if min(len(before), len(after)) < 3:
        row("2x2x2, a wire cut while it runs", ">= 62%", f"cut in iteration {at} of {len(t)}: set CUT_AFTER", False)
    else:
        speed = statistics.median(before) / statistics.median(after)
        row("2x2x2, a wire cut while it runs: speed after", ">= 62%", f"{100 * speed:.1f}%", speed >= 0.62)
    row("the iteration in which it was cut", "completes", f"{max(t) / 1e6:.2f} s", r.get("wrong", -1) == 0)


def latency(r, peers):
    mpi = peers["default"]
    row("16 KiB on 8 hosts, least time", f"<= {mpi['min_us']:.0f} us (Open MPI's default)", f"{r['min_us']:.0f} us",
        r["min_us"] <= mpi["min_us"])
    row("16 KiB on 8 hosts, median", f"({mpi['median_us']:.0f} us)", f"{r['median_us']:.0f} us", True)


def choice(r):
    """How much slower the choice is than the best of the algorithms, among them the one it took. Of short operations the
    least times are compared, since what else the machine does is many times longer than they are."""
    which = "min_us" if r["bytes"] < 1 << 18 else "median_us"
    times = {m["algorithm"]: m[which] for m in r["algorithms"]}
    best = min(times, key=times.get)
    ratio = r[which] / times[best]
    all_of_them = ", ".join(f"{a} {t:.0f}" for a, t in times.items())
    size = f"{r['bytes'] >> 10} KiB" if r["bytes"] < 1 << 20 else f"{r['bytes'] >> 20} MiB"
    row(f"{r['scenario']}, {size}: {r['algorithm']}, {r[which]:.0f} us, over the best ({all_of_them})", "<= 1.10",
        f"{ratio:.2f}", ratio <= 1.10)


print("| what | bar | measured | met |\n|---|---|---|---|")
wrong = {}
for line in open(sys.argv[1]):
    r = json.loads(line)
    name, peers = r["scenario"], {m["algorithm"]: m for m in r["mpi"]}
    if name in LEAST_SHARE:
        speeds(r, peers)
    elif name == "down":
        down(r)
    elif name == "latency":
        latency(r, peers)
    else:
        choice(r)
    wrong[name] = wrong.get(name, 0) + abs(r.get("wrong", -1))
for name, count in wrong.items():
    row(f"{name}, wrong elements", "0", str(count), count == 0)
