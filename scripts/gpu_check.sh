#!/usr/bin/env bash
# gpu_check.sh: everything that only a machine with an NVIDIA GPU can tell, in one command of at most nine minutes: builds
# for that GPU, runs the GPU tests, trains on it, and measures, beside PyTorch in the same minutes. Needs nvcc and
# cuBLASLt; no network. What is missing (PyTorch, NCCL, compute-sanitizer, python3) is said in a line and left out.
#
#   scripts/gpu_check.sh            everything
#   OUT=folder                      where table.txt and log.txt, the output of every part, go (build/gpu-check)
#   B=64 T=1024 TOTAL=524288        GPT-2 124M is measured with batches of B x T tokens, TOTAL of them a step
#   STEPS=10 ROUNDS=3               so many steps in each round; the first two of a round are not counted
#   SECONDS_MAX=540                 for everything: what has no time left is left out
#   ARCH=90                         the architecture to build for, if not this GPU's
#   SKIP="fp32 sanitizer torch"     parts to leave out: fp32, tests, ranks, repeat, torch, decode, sanitizer
# Exits 0 if every test passed. A measurement is never a verdict.
#
# GPU=shim builds for the shim of dev/cuda_shim instead and takes tiny sizes: a test of this script itself.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
OUT=${OUT:-build/gpu-check} B=${B:-64} T=${T:-1024} TOTAL=${TOTAL:-524288} STEPS=${STEPS:-10} ROUNDS=${ROUNDS:-3}
SKIP=" ${SKIP:-} " GPU=${GPU:-cuda}
DEADLINE=$((SECONDS + ${SECONDS_MAX:-540}))
work=build/gpu-check-work
passed=0 failed=0
rm -rf "$work"
mkdir -p "$OUT" "$work" || exit 1
: >"$OUT/table.txt"
: >"$OUT/log.txt"

say() { echo "$*" | tee -a "$OUT/table.txt"; }
left() { echo $((DEADLINE - SECONDS)); }
wanted() { [[ $SKIP != *" $1 "* ]]; }
have() { command -v "$1" >/dev/null 2>&1; }
on_gpu() { [ "$GPU" != shim ]; }

# attempt NAME SECONDS COMMAND...: its output goes to work/NAME.log and on to log.txt; 124: no time (left).
attempt() {
    local name=$1 seconds=$2 code
    shift 2
    [ "$seconds" -le "$(left)" ] || seconds=$(left)
    [ "$seconds" -ge 5 ] || { echo "no time left" >"$work/$name.log" && return 124; }
    timeout -k 5 "$seconds" "$@" >"$work/$name.log" 2>&1 </dev/null
    code=$?
    { echo "=== $name: exit $code: $*" && cat "$work/$name.log"; } >>"$OUT/log.txt"
    return $code
}

# part NAME SECONDS COMMAND...: a test.
part() {
    local name=$1 start=$SECONDS code
    attempt "$@"
    code=$?
    case $code in
    0) passed=$((passed + 1)) && say "ok    $name ($((SECONDS - start)) s)" ;;
    77) say "skip  $name: $(tail -n 1 "$work/$name.log")" ;;
    124) if [[ $name = sanitizer-* ]]; then
        say "skip  $name: not done in time"
    else
        failed=$((failed + 1)) && say "FAIL  $name: not done in $((SECONDS - start)) s"
    fi ;;
    *) failed=$((failed + 1)) && say "FAIL  $name (exit $code, $((SECONDS - start)) s): $(tail -n 1 "$work/$name.log")" ;;
    esac
    return $code
}

# measure NAME SECONDS COMMAND...: a measurement; work/NAME.all gathers what it prints over all calls.
measure() {
    attempt "$@" || say "      $1: not measured: $(tail -n 1 "$work/$1.log")"
    cat "$work/$1.log" >>"$work/$1.all"
}

# The most memory of the GPU that is in use while COMMAND runs, in MiB, to work/NAME.memory.
with_memory() {
    local name=$1 watcher
    shift
    (
        most=0
        while sleep 0.2; do
            now=$(nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits -i 0 2>/dev/null | head -n 1)
            [ "${now:-0}" -gt "$most" ] 2>/dev/null && most=$now && echo "$most" >"$work/$name.memory"
        done
    ) &
    watcher=$!
    "$@"
    kill "$watcher" 2>/dev/null
    wait "$watcher" 2>/dev/null
}

# numbers FILE PATTERN: those that the pattern, an extended regular expression with one group, finds; median: of stdin.
numbers() { sed -nE "s/$2/\\1/p" "$1" 2>/dev/null; }
median() { sort -g | awk '{ v[NR] = $1 } END { if (NR) print v[int((NR + 1) / 2)] }'; }

# --- the machine ---
if on_gpu; then
    if ! have nvidia-smi || ! nvidia-smi >"$work/machine.log" 2>&1; then
        say "no NVIDIA GPU here (nvidia-smi does not answer)"
        exit 77
    fi
    name=$(nvidia-smi --query-gpu=name --format=csv,noheader -i 0 | head -n 1)
    if [ -z "${ARCH:-}" ]; then
        ARCH=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader -i 0 2>/dev/null | head -n 1 | tr -dc 0-9)
        ARCH=${ARCH:-native}
    fi
    say "$(nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit --format=csv,noheader -i 0 | head -n 1)"
else
    name=shim ARCH=shim
    echo "the shim on the CPU" >"$work/machine.log"
fi
{ git describe --always --dirty; gcc --version | head -n 1; nproc; free -g | sed -n 2p; } >>"$work/machine.log" 2>&1
cat "$work/machine.log" >>"$OUT/log.txt"
say "$(git describe --always --dirty 2>/dev/null || echo "no git here"); $(nproc) processors; architecture $ARCH; $(date -u +%FT%TZ)"

# --- builds: both at once; another compiler's warnings are no failure here ---
bf16=build/gpu-bf16 fp32=build/gpu-fp32
build() { # build FOLDER PRECISION
    make -j"$(nproc)" WERROR=0 BUILD="$1" PRECISION="$2" ARCH="$ARCH" "$1/train_gpt2cu" "$1/test_gpt2cu" cuda_tests cuda_benches
}
export -f build
export ARCH
if on_gpu; then
    start=$SECONDS
    if wanted fp32; then attempt build-fp32 240 bash -c "build $fp32 fp32" & fi
    part build-bf16 240 bash -c "build $bf16 bf16"
    wait
    if wanted fp32 && [ ! -x $fp32/test_gpt2cu ]; then
        failed=$((failed + 1)) && say "FAIL  build-fp32: $(tail -n 1 "$work/build-fp32.log")"
    fi
    say "      built in $((SECONDS - start)) s"
    [ -x $bf16/train_gpt2cu ] || { say "nothing to run: see the end of build-bf16 in $OUT/log.txt" && exit 1; }
    program=$bf16/train_gpt2cu tests=$bf16/cuda-bf16-$ARCH/test bench=$bf16/cuda-bf16-$ARCH/bench
    parity_bf16=$bf16/test_gpt2cu parity_fp32=$fp32/test_gpt2cu tests_fp32=$fp32/cuda-fp32-$ARCH/test
else
    part build-shim 900 make -j"$(nproc)" build/shim-bf16/train_gpt2 build/shim-bf16/test_gpt2 \
        build/shim-bf16/test_cuda_attention build/shim-fp32/test_gpt2
    program=build/shim-bf16/train_gpt2 tests=build/shim-bf16 bench=build/none
    parity_bf16=build/shim-bf16/test_gpt2 parity_fp32=build/shim-fp32/test_gpt2 tests_fp32=build/none
fi

# --- what the machine can do ---
measure ceilings 60 "$bench/bench_cuda" --runs=20 --T=
sed -n '/^copy\|^product/p' "$work/ceilings.all" | while read -r line; do say "      $line"; done

# --- tests: kernels; the model and attention beside PyTorch in float64 ---
has_torch=0
if wanted torch && have python3 && attempt has-torch 60 python3 -c 'import sys, torch
print(torch.__version__, torch.cuda.is_available())
sys.exit(not torch.cuda.is_available())'; then has_torch=1; fi
[ $has_torch = 1 ] || ! wanted torch || say "skip  PyTorch: python3 here has none that sees the GPU: $(tail -n 1 "$work/has-torch.log" 2>/dev/null)"

kernel_tests() { # kernel_tests FOLDER PRECISION
    local test
    for test in "$1"/test_*; do
        [ -x "$test" ] && [[ $test != *.* ]] && part "$(basename "$test")-$2" 60 "$test"
    done
}
if wanted tests; then
    part parity-bf16 60 $parity_bf16 --precision=bf16
    ! on_gpu || kernel_tests "$tests" bf16
    have python3 || say "skip  attention and model beside PyTorch: no python3 here"
    ! have python3 || part torch-attention-bf16 90 python3 dev/test/cuda_attention_torch.py "$tests/test_cuda_attention" bf16 --large
    ! on_gpu || ! have python3 || part torch-model-bf16 60 python3 dev/test/cuda_parity_torch.py $parity_bf16 --precision=bf16
    if wanted fp32 && [ -x $parity_fp32 ]; then
        part parity-fp32 60 $parity_fp32 --precision=fp32
        ! on_gpu || kernel_tests "$tests_fp32" fp32
        ! on_gpu || ! have python3 || part torch-model-fp32 60 python3 dev/test/cuda_parity_torch.py $parity_fp32 --precision=fp32
    fi
fi

# --- training: random tokens below 32896 in the vocabulary of GPT-2; bytes of our own source for what shall be learnt ---
tokens=$work/random.bin count=$((4 << 20))
{
    printf '\x88\xd8\x34\x01\x01\x00\x00\x00\x00\x00\x40\x00' # magic 20240520, version 1, 4 Mi tokens
    head -c 1012 /dev/zero
    head -c $((5 * count)) /dev/urandom | LC_ALL=C tr -d '\200-\377' | head -c $((2 * count))
} >"$tokens"
if on_gpu; then
    small=(--preset=gpt2 --batch-size=8 --warmup=20) steps=200 ranks_steps=10
else
    small=(--layers=2 --heads=2 --channels=32 --context=64 --batch-size=2 --warmup=2) steps=4 ranks_steps=3
fi
cat llmc/*/*.c >"$work/text.txt"
"$program" tokenize --output="$work/text" "$work/text.txt" >>"$OUT/log.txt" 2>&1 || say "      the source could not be tokenized: see log.txt"

# The losses and norms of a run, a line each, in full.
losses() { sed -nE 's/.*"loss": ?([^,]*),.*"norm": ?([^,]*),.*/\1 \2/p' "$1/metrics.jsonl"; }
# train RUN RANKS OPTIONS...: as one rank, or as several that share this GPU.
train() {
    local run=$1 ranks=$2 r pids=() code=0
    shift 2
    rm -rf "$run"
    if [ "$ranks" = 1 ]; then
        "$program" --train-data="$work/text_train_*.bin" "${small[@]}" --eval-every=0 --run="$run" "$@" || code=1
    else
        for ((r = 0; r < ranks; r++)); do
            TOROID_JOB=gpu-check-$$ TOROID_SIZE=$ranks TOROID_RANK=$r "$program" --train-data="$work/text_train_*.bin" \
                "${small[@]}" --eval-every=0 --run="$run" "$@" &
            pids+=($!)
        done
        for r in "${pids[@]}"; do wait "$r" || code=1; done
    fi
    rm -rf "$run/checkpoints"
    return $code
}
same_losses() { # same_losses RUN RUN STEPS: bit by bit
    [ "$(losses "$1" | wc -l)" = "$3" ] || { echo "$1: $(losses "$1" | wc -l) steps, not $3" && return 1; }
    cmp <(losses "$1") <(losses "$2") || return 1
    echo "the same bits in $3 steps, from $(losses "$1" | head -n 1) to $(losses "$1" | tail -n 1) (loss, norm)"
}
repeats() {
    train "$work/a" 1 --steps=$steps && train "$work/b" 1 --steps=$steps && same_losses "$work/a" "$work/b" $steps
}
two_ranks() { # two_ranks BACKEND: two ranks, by exact sums, have the bits of one
    local more=("--steps=$ranks_steps" --reduce=exact "--total-batch=$total")
    [ -e "$work/one/metrics.jsonl" ] || train "$work/one" 1 "${more[@]}" || return 1
    train "$work/two" 2 "${more[@]}" --comm="$1" && same_losses "$work/one" "$work/two" $ranks_steps
}
nccl_refuses() { # NCCL has no two ranks on a GPU: that is said, not hung on
    train "$work/nccl" 2 --steps=1 --comm=nccl "--total-batch=$total" >"$work/nccl.out" 2>&1 && echo "NCCL took them" && return 1
    grep -m 1 error: "$work/nccl.out"
}
if on_gpu; then total=$((4 * 8 * 1024)); else total=$((4 * 2 * 64)); fi
export -f train losses same_losses repeats two_ranks nccl_refuses
export work program steps ranks_steps total
small_text="${small[*]}"
export small_text
in_bash() { # in_bash NAME SECONDS FUNCTION ARGUMENTS...: a part that is a function of this script
    local name=$1 seconds=$2
    shift 2
    # shellcheck disable=SC2016
    part "$name" "$seconds" bash -c 'read -ra small <<<"$small_text"; set -o pipefail; "$@"' bash "$@"
}
if wanted repeat; then in_bash "repeatable-$steps-steps" 120 repeats; fi
if wanted ranks; then
    for backend in shm torus; do in_bash "two-ranks-$backend" 60 two_ranks $backend; done
    if in_bash nccl-refuses 40 nccl_refuses; then say "      NCCL: $(tail -n 1 "$work/nccl-refuses.log")"; fi
fi
rm -rf "$work"/{a,b,one,two,nccl}

# --- attention, decoding ---
if on_gpu; then
    measure walk 60 "$bench/bench_walk" --B="$B" --T="$T"
    while IFS= read -r line; do say "      $line"; done <"$work/walk.all"
    measure attention 60 "$bench/bench_cuda" --runs=20 --T=1024,4096
    [ $has_torch = 0 ] || measure attention-torch 60 python3 dev/bench/bench_attention_torch.py
    if wanted decode; then
        for type in bf16 int8; do measure decode 30 "$bench/bench_decode" --type=$type; done
    fi
fi

# --- steps of GPT-2 124M: ours and PyTorch's in turn ---
if on_gpu; then
    step=(--preset=gpt2 --batch-size="$B" --sequence="$T" --total-batch="$TOTAL")
else
    B=2 T=64 TOTAL=256 STEPS=3 ROUNDS=1
    step=("${small[@]}" "--total-batch=$TOTAL") tokens="$work/text_train_*.bin"
fi
ours_round() {
    rm -rf "$work/run"
    measure ours 90 "$program" --train-data="$tokens" "${step[@]}" --steps="$STEPS" --eval-every=0 --run="$work/run"
    sed 1,2d "$work/run/metrics.jsonl" >>"$work/ours.steps" 2>/dev/null
    cat "$work/run/metrics.jsonl" >>"$OUT/log.txt" 2>/dev/null
    rm -rf "$work/run"
}
compile=(--compile)
torch_round() {
    local torch=(python3 dev/bench/bench_step_torch.py --device cuda --precision bf16 --B "$B" --T "$T"
        --accumulate $((TOTAL / (B * T))) --steps $((STEPS - 2)))
    if ! attempt torch 150 "${torch[@]}" "${compile[@]}"; then
        say "      PyTorch: $(tail -n 1 "$work/torch.log")"
        [ ${#compile[@]} = 0 ] || { compile=() && attempt torch 90 "${torch[@]}"; }
    fi
    cat "$work/torch.log" >>"$work/torch.all"
}
for ((round = 0; round < ROUNDS && $(left) > 30; round++)); do
    with_memory ours ours_round
    [ $has_torch = 0 ] || with_memory torch torch_round
done

# --- memory errors and races: small, since each access is watched ---
if ! wanted sanitizer || ! on_gpu; then
    :
elif PATH=$PATH:/usr/local/cuda/bin have compute-sanitizer; then
    PATH=$PATH:/usr/local/cuda/bin
    for tool in memcheck racecheck; do
        part "sanitizer-$tool" 60 compute-sanitizer --tool $tool --error-exitcode 1 "$tests/test_cuda_attention" quick
    done
    part sanitizer-train 90 compute-sanitizer --tool memcheck --error-exitcode 1 "$program" --train-data="$work/text_train_*.bin" \
        --layers=2 --heads=2 --channels=128 --context=128 --batch-size=2 --steps=2 --eval-every=0 --run=
else
    say "skip  sanitizer: no compute-sanitizer here"
fi

# --- the table ---
say ""
for log in attention attention-torch decode; do
    sed -nE '/^(attention|SDPA|decode)/p' "$work/$log.all" 2>/dev/null | while read -r line; do say "$line"; done
done
product=$(numbers "$work/ceilings.all" '^product .* ([0-9.]+) TFLOP.*' | median)
case $name in *H100* | *H200*) sheet=989.5 ;; *A100*) sheet=312 ;; *) sheet=0 ;; esac
row() { # row NAME GB FILE-OF-MILLISECONDS MIB
    local ms
    ms=$(median <"$3")
    [ -n "$ms" ] || { say "$1: not measured" && return; }
    say "$(awk -v name="$1" -v ms="$ms" -v tokens="$TOTAL" -v T="$T" -v sheet="$sheet" -v product="${product:-0}" -v gb="${2:-0}" \
        -v mib="${4:-0}" -v steps="$(wc -l <"$3")" '
        BEGIN {
            L = 12; C = 768; V = 50257
            useful = 6 * (12 * L * C * C + V * C) + 12 * L * C * (T + 1) / 2
            full = 6 * (124475904) + 12 * L * C * T
            rate = 1e3 * tokens / ms
            printf "%-24s %9.2f ms %9.0f tokens/s", name, ms, rate
            if (sheet) printf "  MFU %5.1f%% useful, %5.1f%% as 6N + 12LCT", 1e-10 * rate * useful / sheet, 1e-10 * rate * full / sheet
            if (product) printf "  %5.1f%% of the product above", 1e-10 * rate * useful / product
            printf "  %6.2f GB held, %6.2f in use  (%d steps)", gb, mib * 1.048576e-3, steps
        }')"
}
say ""
say "step of GPT-2 124M: $TOTAL tokens in batches of $B x $T, bf16; medians of $ROUNDS rounds in turn. Useful FLOP a token:"
say "6 (12 L C^2 + V C) + 12 L C (T + 1) / 2; MFU of $sheet TFLOP/s (data sheet: dense, 16-bit)"
numbers "$work/ours.steps" '.*"ms": ?([0-9.]+).*' >"$work/ours.ms"
numbers "$work/torch.all" '^step .* ([0-9.]+) ms.*' >"$work/torch.ms"
bytes=$(numbers "$work/ours.steps" '.*"memory_bytes": ?([0-9]+).*' | sort -g | tail -n 1)
gigabytes=$(numbers "$work/torch.all" '.*peak memory ([0-9.]+) GB.*' | sort -g | tail -n 1)
row "ours (train_gpt2cu)" "$(awk -v b="${bytes:-0}" 'BEGIN { print 1e-9 * b }')" "$work/ours.ms" "$(cat "$work/ours.memory" 2>/dev/null)"
if [ $has_torch = 1 ]; then
    row "PyTorch ${compile[*]} SDPA" "${gigabytes:-0}" "$work/torch.ms" "$(cat "$work/torch.memory" 2>/dev/null)"
fi
say ""
say "$passed passed, $failed failed, in $SECONDS s; everything that was printed is in $OUT/log.txt"
[ "$failed" = 0 ] && [ "$passed" -gt 0 ]
