#!/usr/bin/env bash
# bench.sh: what following the wires is worth: comm_bench in labs of netlab.sh, against what the links allow and against
# Open MPI's own algorithms, measured alternately in the same run. The result is for dev/records/: the raw lines (JSON,
# one a size and scenario), then a table with the bar of each line (bench_table.py).
#
#   make benches && sudo dev/netlab/bench.sh [--short] [SCENARIO...]
#
#   2x2x2 4x2 3x3x3   speed of large sums                          down      a wire is cut while it runs
#   latency           16 KiB                                       exact     --reduce exact against sums of floats
#   chooser           the choice among algorithms, 1 KiB to 64 MiB on 2x2x2, 4x2 and a ring of 8
#
# All of them: ~20 minutes; --short: fewer iterations, the choice up to 1 MiB only, ~12 minutes.
# BENCH=build/bench/bench_comm   the program; ITERATIONS=7; BACKEND=torus
set -euo pipefail
cd "$(dirname "$0")/../.."
netlab=dev/netlab/netlab.sh
short=
if [ "${1:-}" = --short ]; then
    short=1
    shift
fi
bench=${BENCH:-build/bench/bench_comm} iterations=${ITERATIONS:-$([ "$short" ] && echo 3 || echo 7)}
backend=${BACKEND:-torus}
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

# run SCENARIO OPTIONS...: its lines of JSON, each kept with the scenario.
run() {
    local scenario=$1
    shift
    timeout 900 $netlab run "$bench" --backend="$backend" --topology="$topology" --json "$@" |
        sed -n "s/^{/{\"scenario\": \"$scenario\", /p" | tee -a "$out" ||
        echo "bench.sh: $scenario failed" >&2
}

scenario_2x2x2() {
    lab 2x2x2 100mbit
    run 2x2x2 -b 16M -n "$iterations" -w 1 --compare-mpi=all
}
scenario_3x3x3() {
    lab 3x3x3 20mbit
    run 3x3x3 -b 4M -n $((iterations < 5 ? iterations : 5)) -w 1 --compare-mpi=all --timeout=120 # 50 s each
}
scenario_4x2() {
    lab 4x2 100mbit
    run 4x2 -b 16M -n "$iterations" -w 1 --compare-mpi=all
}
# A wire is cut, in silence, while it runs: the last iterations are those on the torus without it.
scenario_down() {
    lab 2x2x2 100mbit
    (sleep "${CUT_AFTER:-10}" && $netlab link 0,0,0 +x down) &
    run down -b 16M -n 24 -w 1 --timeout=10
    wait
}
scenario_latency() {
    lab 2x2x2 100mbit
    run latency -b 16K -n 300 -w 20 --compare-mpi=all
}
scenario_exact() {
    lab 2x2x2 100mbit
    run exact -b 16M -n "$iterations" -w 1 --type=exact
}
# Around an axis as a whole, large ones take minutes and are out of the question: they are left out. Around one axis in
# pieces is the same as whole.
scenario_chooser() {
    local shape all
    for shape in 2x2x2 4x2 8; do
        lab $shape 100mbit
        all=whole,split,rings
        [ $shape != 8 ] || all=whole,rings
        run chooser-$shape -b 1K -e 128K -f 2 -n 60 -w 5 --compare-algorithms=$all
        run chooser-$shape -b 24K -n 60 -w 5 --compare-algorithms=$all
        run chooser-$shape -b 48K -n 60 -w 5 --compare-algorithms=$all
        run chooser-$shape -b 256K -e 1M -n 5 -w 1 --compare-algorithms=$all
        [ "$short" ] || run chooser-$shape -b 4M -e 64M -f 4 -n 1 -w 0 --compare-algorithms=${all#whole,}
    done
}

echo "# $(uname -sr), $(nproc) CPUs, $(mpirun --version | head -n 1), $($bench --help | head -n 1 | cut -d: -f1)," \
    "$(git describe --always --dirty 2>/dev/null || echo unknown version)"
[ $# -gt 0 ] || set -- 2x2x2 4x2 3x3x3 down latency exact chooser
for scenario in "$@"; do
    declare -F "scenario_$scenario" >/dev/null || {
        echo "bench.sh: no scenario $scenario" >&2
        exit 2
    }
    "scenario_$scenario"
done
python3 dev/netlab/bench_table.py "$out"
