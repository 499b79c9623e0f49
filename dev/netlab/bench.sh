#!/usr/bin/env bash
# bench.sh: what following the wires is worth: comm_bench in labs of netlab.sh, against what the links allow and against
# Open MPI's own algorithms, measured alternately in the same run. The result is for dev/records/: the raw lines (JSON,
# one a scenario), then a table with the bar of each line.
#
#   make benches && sudo dev/netlab/bench.sh [SCENARIO...]    2x2x2 3x3x3 4x2 down latency; all of them: ~12 minutes
#
# BENCH=build/bench/bench_comm   the program; ITERATIONS=5; BACKEND=torus
set -euo pipefail
cd "$(dirname "$0")/../.."
netlab=dev/netlab/netlab.sh
bench=${BENCH:-build/bench/bench_comm} iterations=${ITERATIONS:-5} backend=${BACKEND:-torus}
export NETLAB=${NETLAB:-netbench}
[ -x "$bench" ] || {
    echo "bench.sh: $bench is missing (make benches)" >&2
    exit 1
}
out=$(mktemp)
trap '$netlab down; rm -f "$out"' EXIT
trap 'exit 1' INT TERM

# lab SHAPE RATE: builds it, unless it cannot be built here (exit 77).
lab() {
    $netlab down
    $netlab up torus "$1" "$2" || exit $?
    topology=file:$($netlab topology)
}

# run SCENARIO OPTIONS...: one line of JSON, kept with its scenario.
run() {
    local scenario=$1 line
    shift
    line=$(timeout 900 $netlab run "$bench" --backend="$backend" --topology="$topology" --json "$@" | grep '^{') || {
        echo "bench.sh: $scenario failed" >&2
        return 0
    }
    echo "{\"scenario\": \"$scenario\", ${line#\{}" | tee -a "$out"
}

scenario_2x2x2() {
    lab 2x2x2 100mbit
    run 2x2x2 -b 16M -n "$iterations" -w 1 --compare-mpi=all
}
scenario_3x3x3() {
    lab 3x3x3 20mbit
    run 3x3x3 -b 4M -n "$iterations" -w 1 --compare-mpi=all --timeout=120
}
scenario_4x2() {
    lab 4x2 100mbit
    run 4x2 -b 16M -n "$iterations" -w 1 --compare-mpi=all
}
# A wire is cut, in silence, while it runs: the last iterations are those on the torus without it.
scenario_down() {
    lab 2x2x2 100mbit
    (sleep "${CUT_AFTER:-8}" && $netlab link 0,0,0 +x down) &
    run down -b 16M -n 24 -w 1 --timeout=10
    wait
}
scenario_latency() {
    lab 2x2x2 100mbit
    run latency -b 16K -n 300 -w 20 --compare-mpi=all
}

echo "# $(uname -sr), $(nproc) CPUs, $(mpirun --version | head -n 1), $($bench --help | head -n 1 | cut -d: -f1)," \
    "$(git describe --always --dirty 2>/dev/null || echo unknown version)"
[ $# -gt 0 ] || set -- 2x2x2 3x3x3 4x2 down latency
for scenario in "$@"; do
    declare -F "scenario_$scenario" >/dev/null || {
        echo "bench.sh: no scenario $scenario" >&2
        exit 2
    }
    "scenario_$scenario"
done

python3 - "$out" <<'PYTHON'
import json, statistics, sys

def row(what, bar, value, met):
    print(f"| {what} | {bar} | {value} | {'yes' if met else 'NO'} |")

print("| what | bar | measured | met |\n|---|---|---|---|")
for line in open(sys.argv[1]):
    r = json.loads(line)
    name, share, wrong = r["scenario"], r.get("share_of_bound", 0), r.get("wrong", -1)
    peers = {m["algorithm"]: m for m in r["mpi"]}
    forced = [m for a, m in peers.items() if a != "default"]
    best = min(forced, key=lambda m: m["median_us"]) if forced else None
    least = {"2x2x2": 0.97, "3x3x3": 0.94, "4x2": 0.95}
    if name in least:
        row(f"{name}, share of what the links allow", f">= {100 * least[name]:.0f}%", f"{100 * share:.1f}%",
            share >= least[name])
    if name == "2x2x2" and best:
        row(f"{name}, against Open MPI's best ({best['algorithm']})", ">= 2.9x", f"{best['ratio']:.2f}x",
            best["ratio"] >= 2.9)
        ratio = peers["default"]["ratio"]
        row(f"{name}, against Open MPI's default", ">= 5.5x", f"{ratio:.2f}x", ratio >= 5.5)
    if name == "3x3x3" and "ring" in peers:
        ratio = peers["ring"]["ratio"]
        row(f"{name}, against Open MPI's ring", ">= 5.5x", f"{ratio:.2f}x", ratio >= 5.5)
    if name == "down":
        t = r["times_us"]
        at = t.index(max(t))  # when it was cut
        before, after = t[:at], t[at + 1 :]
        if min(len(before), len(after)) < 3:
            row("2x2x2, a wire cut while it runs", ">= 62%", f"cut in iteration {at} of {len(t)}: set CUT_AFTER", False)
        else:
            speed = statistics.median(before) / statistics.median(after)
            row("2x2x2, a wire cut while it runs: speed after", ">= 62%", f"{100 * speed:.1f}%", speed >= 0.62)
        row("the iteration in which it was cut", "completes", f"{max(t) / 1e6:.2f} s", wrong == 0)
    if name == "latency":
        mpi = peers["default"]["min_us"]
        row("16 KiB on 8 hosts, least time", f"<= {mpi:.0f} us (Open MPI's default)", f"{r['min_us']:.0f} us",
            r["min_us"] <= mpi)
    row(f"{name}, wrong elements", "0", str(wrong), wrong == 0)
PYTHON
