#!/usr/bin/env bash
# gpu_check.sh: everything that only a machine with an NVIDIA GPU can tell, in one command of at most nine minutes: builds
# for that GPU, runs the GPU tests and the parity test, then measures, beside PyTorch in the same minutes. Prints a table;
# it and the raw output of every part are in OUT.
#
#   scripts/gpu_check.sh            everything
#   OUT=folder                      where the logs go (build/gpu-check)
#   B=64 T=1024 STEPS=20 ROUNDS=2   the training step of GPT-2 124M that is measured
#   ARCH=native                     the architecture to build for
#   SKIP="fp32 sanitizer torch"     parts to leave out
# Exits 0 if every test passed; what cannot run here is said and skipped. A measurement is never a verdict.
#
# MFU here: useful FLOP of a step (6 per weight of a matmul and token; 12 L C per pair of a token and one that it sees,
# which is (T+1)/2 of them) over the time and the peak in the table: 16-bit tensor cores, as the data sheet has it.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
OUT=${OUT:-build/gpu-check} B=${B:-64} T=${T:-1024} STEPS=${STEPS:-20} ROUNDS=${ROUNDS:-2} ARCH=${ARCH:-native}
SKIP=" ${SKIP:-} "
DEADLINE=$((SECONDS + 540))
passed=0 failed=0
mkdir -p "$OUT" || exit 1
: >"$OUT/table.txt"

say() { echo "$*" | tee -a "$OUT/table.txt"; }
left() { echo $((DEADLINE - SECONDS)); }
wanted() { [[ $SKIP != *" $1 "* ]]; }
have() { command -v "$1" >/dev/null 2>&1; }

# part NAME SECONDS COMMAND...: a test; its output goes to OUT/NAME.log.
part() {
    local name=$1 seconds=$2 start=$SECONDS code
    shift 2
    [ "$seconds" -le "$(left)" ] || seconds=$(left)
    [ "$seconds" -ge 5 ] || { say "skip  $name: no time left" && return; }
    timeout -k 5 "$seconds" "$@" >"$OUT/$name.log" 2>&1 </dev/null
    code=$?
    if [ $code = 0 ]; then
        passed=$((passed + 1)) && say "ok    $name ($((SECONDS - start)) s)"
    else
        failed=$((failed + 1)) && say "FAIL  $name (exit $code, $((SECONDS - start)) s): $(tail -n 1 "$OUT/$name.log")"
    fi
}

# measure NAME SECONDS COMMAND...: a measurement; what it printed is appended to OUT/NAME.log.
measure() {
    local name=$1 seconds=$2
    shift 2
    [ "$seconds" -le "$(left)" ] || seconds=$(left)
    [ "$seconds" -ge 5 ] || { say "skip  $name: no time left" && return 1; }
    timeout -k 5 "$seconds" "$@" >>"$OUT/$name.log" 2>&1 </dev/null || say "      $name: $(tail -n 1 "$OUT/$name.log")"
}

# The most memory of the GPU that is in use while COMMAND runs, in MiB, to OUT/NAME.memory.
with_memory() {
    local name=$1 watcher
    shift
    (
        most=0
        while sleep 0.2; do
            now=$(nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits -i 0 2>/dev/null | head -n 1)
            [ "${now:-0}" -gt "$most" ] 2>/dev/null && most=$now && echo "$most" >"$OUT/$name.memory"
        done
    ) &
    watcher=$!
    "$@"
    local code=$?
    kill "$watcher" 2>/dev/null
    wait "$watcher" 2>/dev/null
    return $code
}

# median FILE PATTERN: of the numbers that the pattern, an extended regular expression with one group, finds.
median() {
    sed -nE "s/$2/\\1/p" "$1" 2>/dev/null | sort -g | awk '{ v[NR] = $1 } END { if (NR) print v[int((NR + 1) / 2)] }'
}

# --- the machine ---
if ! have nvidia-smi || ! nvidia-smi >"$OUT/machine.log" 2>&1; then
    say "no NVIDIA GPU here (nvidia-smi does not answer)"
    exit 77
fi
nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit --format=csv >>"$OUT/machine.log"
say "$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | head -n 1); $(git describe --always --dirty 2>/dev/null)"

# --- builds ---
bf16=build/gpu-bf16 fp32=build/gpu-fp32
build() { # build FOLDER PRECISION
    make -j"$(nproc)" BUILD="$1" PRECISION="$2" ARCH="$ARCH" "$1/train_gpt2cu" "$1/test_gpt2cu" cuda_tests cuda_benches
}
export -f build
export ARCH
part build-bf16 240 bash -c "build $bf16 bf16"
if wanted fp32; then part build-fp32 240 bash -c "build $fp32 fp32"; fi
[ -x $bf16/train_gpt2cu ] || { say "nothing to run: see $OUT/build-bf16.log" && exit 1; }

# --- tests ---
tests() { # tests FOLDER PRECISION
    local program
    for program in "$1/cuda-$2-$ARCH"/test/test_*; do
        [ -x "$program" ] && [[ $program != *.* ]] && part "$(basename "$program")-$2" 60 "$program"
    done
    part "parity-$2" 60 "$1/test_gpt2cu" --precision="$2"
}
tests $bf16 bf16
if wanted fp32; then tests $fp32 fp32; fi
if ! wanted sanitizer; then
    :
elif have compute-sanitizer; then
    for tool in memcheck racecheck; do
        part "sanitizer-$tool" 90 compute-sanitizer --tool $tool --error-exitcode 1 \
            "$bf16/cuda-bf16-$ARCH/test/test_cuda_attention" quick
    done
else
    say "skip  sanitizer: no compute-sanitizer here"
fi

# --- what the machine can do, then ours and PyTorch in turn ---
rm -f "$OUT"/bench.log "$OUT"/ours.log "$OUT"/torch.log "$OUT"/*.memory
bench=$bf16/cuda-bf16-$ARCH/bench
measure bench 60 "$bench/bench_cuda" --runs=20
for type in bf16 int8; do measure bench 30 "$bench/bench_decode" --type=$type; done
torch() { have python3 && python3 -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; }
has_torch=0
if wanted torch && torch; then has_torch=1; fi
for ((round = 0; round < ROUNDS; round++)); do
    with_memory ours measure ours 60 "$bench/bench_step" --B="$B" --T="$T" --steps="$STEPS" --precision=bf16 \
        --head-rows=8192
    [ $has_torch = 1 ] && with_memory torch measure torch 120 python3 dev/bench/bench_step_torch.py --device cuda \
        --compile --precision bf16 --B "$B" --T "$T" --steps "$STEPS"
done

# --- the table ---
say ""
tee -a "$OUT/table.txt" <"$OUT/bench.log"
peak=$(median "$OUT/ours.log" '^step .* peak ([0-9.]+) GFLOP.*')
row() { # row NAME LOG
    local ms
    ms=$(median "$OUT/$2.log" '^step .* ([0-9.]+) ms.*')
    [ -n "$ms" ] || { say "$1: not measured" && return; }
    say "$(awk -v name="$1" -v ms="$ms" -v B="$B" -v T="$T" -v peak="${peak:-0}" -v mib="$(cat "$OUT/$2.memory" 2>/dev/null)" '
        BEGIN {
            L = 12; C = 768; V = 50257; tokens = 1e3 * B * T / ms
            flop = 6 * (12 * L * C * C + V * C) + 12 * L * C * (T + 1) / 2
            printf "%-28s %9.2f ms  %9.0f tokens/s  %5.1f%% MFU  %6.1f GB", name, ms, tokens,
                peak ? 100 * tokens * flop / (1e9 * peak) : 0, mib * 1.048576e-3
        }')"
}
say ""
say "training step of GPT-2 124M, B $B, T $T, bf16, medians of $((STEPS * ROUNDS)) steps in $ROUNDS rounds"
say "MFU: (6 (12 L C^2 + V C) + 12 L C (T+1)/2) FLOP a token, of a peak of ${peak:-?} GFLOP/s (data sheet)"
row "ours" ours
if [ $has_torch = 1 ]; then row "PyTorch, compiled, SDPA" torch; else say "PyTorch: none here that sees the GPU"; fi
say ""
say "$passed passed, $failed failed; logs in $OUT"
[ "$failed" = 0 ] && [ "$passed" -gt 0 ]
