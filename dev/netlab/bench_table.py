#!/usr/bin/env python3
"""bench_table.py FILE: the table of bars of bench.sh, from its lines of JSON. A time of an iteration is that of the
slowest rank. What is compared was measured alternately in one run."""
import json
import statistics
import sys

LEAST_SHARE = {"2x2x2": 0.97, "3x3x3": 0.94, "4x2": 0.95}


rows = []


def row(*what_bar_value_met):
    rows.append(what_bar_value_met)


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
        ratio_row(f"{name}, against Open MPI's default", peers["default"]["ratio"], 5.5)
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


def exact(r):
    floats = r["algorithms"][-1]
    row(f"exact against float, {r['bytes'] >> 20} MiB: time", "<= 1.15x", f"{1 / floats['ratio']:.3f}x",
        1 / floats["ratio"] <= 1.15)
    more = r["wire_bytes"] / floats["wire_bytes"]
    row("exact against float: bytes on the fullest wire", "<= 1.01x", f"{more:.4f}x", more <= 1.01)


def size_text(n):
    return f"{n >> 10} KiB" if n < 1 << 20 else f"{n >> 20} MiB"


def choices(name, lines):
    """How much slower the algorithm that is chosen is than the best one: least times, since what else the machine does is
    many times longer than short operations. It is measured as the others are: as one that is forced."""
    worst, chosen = None, []
    for r in sorted(lines, key=lambda r: r["bytes"]):
        times = {m["algorithm"]: m["min_us"] for m in r["algorithms"]}
        name_of_it = r["algorithm"].split(",")[0]
        ratio = times[name_of_it] / min(times.values())
        all_of_them = ", ".join(f"{a} {t:.0f}" for a, t in times.items())
        print(f"{name}, {size_text(r['bytes'])}: {name_of_it} is {ratio:.2f}x the best (us: {all_of_them})")
        if name_of_it not in [c[0] for c in chosen]:
            chosen.append((name_of_it, r["bytes"]))
        if not worst or ratio > worst[0]:
            worst = ratio, r["bytes"]
    first, last = (size_text(f(r["bytes"] for r in lines)) for f in (min, max))
    which = ", ".join(f"{a} from {size_text(n)}" for a, n in chosen)
    rows.append((f"{name}, {first} to {last}: the choice ({which}) over the best, at worst", "<= 1.10x",
                 f"{worst[0]:.2f}x (at {size_text(worst[1])})", worst[0] <= 1.10))


wrong, by_shape = {}, {}
for line in open(sys.argv[1]):
    r = json.loads(line)
    name, peers = r["scenario"], {m["algorithm"]: m for m in r["mpi"]}
    if name in LEAST_SHARE:
        speeds(r, peers)
    elif name == "down":
        down(r)
    elif name == "latency":
        latency(r, peers)
    elif name == "exact":
        exact(r)
    else:
        by_shape.setdefault(name, []).append(r)
    wrong[name] = wrong.get(name, 0) + abs(r.get("wrong", -1))
for name, lines in by_shape.items():
    choices(name, lines)
for name, count in wrong.items():
    row(f"{name}, wrong elements", "0", str(count), count == 0)
print("| what | bar | measured | met |\n|---|---|---|---|")
for what, bar, value, met in rows:
    print(f"| {what} | {bar} | {value} | {'yes' if met else 'NO'} |")
