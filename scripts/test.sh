#!/usr/bin/env bash
# test.sh: installs what the tests need, runs them all, prints a line for each and "N passed, N failed, N skipped".
#
#   ./scripts/test.sh              everything (CI does this)
#   ./scripts/test.sh PATTERN      only tests whose name matches the extended regular expression
#   INSTALL=0 ./scripts/test.sh    installs nothing; what is missing is skipped
# The output of each test is in build/test-logs/. A test is skipped by exiting 77, its last line says why.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
. scripts/packages.sh
pattern=${1:-.}
logs=build/test-logs
jobs=$(nproc)
passed=0 failed=0 skipped=0
mkdir -p "$logs"
export PACKAGES_LOG=$logs/packages.log TOROID_DATA=${TOROID_DATA:-data} BUILD=build

# run NAME COMMAND...: one test. Of `queue`, $jobs are run at a time, and `drain` waits for them and says how they went.
run() {
    wanted "$1" || return 0
    attempt "$@"
    report "$1"
}
wanted() { [[ $1 =~ $pattern ]]; }
log_of() { printf '%s/%s.log' "$logs" "${1//[^A-Za-z0-9_.-]/_}"; }
attempt() {
    local log start=$SECONDS
    log=$(log_of "$1")
    "${@:2}" >"$log" 2>&1 </dev/null
    echo $? $((SECONDS - start)) >"$log.exit"
}
report() {
    local name=$1 log code=1 seconds=0
    log=$(log_of "$name")
    read -r code seconds <"$log.exit"
    rm -f "$log.exit"
    case $code in
    0) passed=$((passed + 1)) && printf 'ok    %-40s %4d s\n' "$name" "$seconds" ;;
    77) skipped=$((skipped + 1)) && printf 'skip  %-40s %s\n' "$name" "$(tail -n 1 "$log")" ;;
    *)
        failed=$((failed + 1))
        printf 'FAIL  %-40s exit %d; the end of %s:\n' "$name" "$code" "$log"
        tail -n 25 "$log" | sed 's/^/        /'
        ;;
    esac
}
queued=()
queue() { # threads that spin would take the time of the test beside them
    wanted "$1" || return 0
    while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do wait -n; done
    OMP_WAIT_POLICY=passive attempt "$@" &
    queued+=("$1")
}
drain() {
    local name
    wait
    for name in "${queued[@]}"; do report "$name"; done
    queued=()
}
skip() { echo "$*" && return 77; }
needs() { # needs "COMMAND..." TEST...: skips unless the commands are there
    local command
    for command in $1; do have "$command" || { skip "no $command" && return 77; }; done
    shift
    "$@"
}

# --- what the tests need ---
if [ "${INSTALL:-1}" = 1 ]; then
    have gcc g++ make python3 curl || install_packages gcc g++ make libc6-dev python3 curl
    have clang clang-format shellcheck || install_packages clang clang-format libomp-dev shellcheck
    [ -e /usr/include/liburing.h ] || install_packages liburing-dev
    [ -e /usr/include/fuse3/fuse.h ] || install_packages libfuse3-dev fuse3 pkg-config
    have mpicc mpirun || install_packages libopenmpi-dev openmpi-bin
    have aarch64-linux-gnu-gcc qemu-aarch64 || install_packages gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user
    have curl-config || install_packages libcurl4-openssl-dev
    [ -e /usr/include/x86_64-linux-gnu/cblas.h ] || [ -e /usr/include/cblas.h ] || install_packages libopenblas-dev
fi
python=python3
imports='import torch, numpy, tiktoken, transformers, safetensors, tensorboard, regex, moto'
if ! $python -c "$imports" 2>/dev/null; then
    python=build/venv/bin/python
    if ! $python -c "$imports" 2>/dev/null && [ "${INSTALL:-1}" = 1 ]; then
        python3 -m venv build/venv >>"$PACKAGES_LOG" 2>&1 ||
            { install_packages python3-venv && python3 -m venv build/venv >>"$PACKAGES_LOG" 2>&1; }
        echo "installing: $(grep -v '^#' dev/test/requirements.txt | paste -sd' ') into build/venv"
        build/venv/bin/pip install -q -r dev/test/requirements.txt >>"$PACKAGES_LOG" 2>&1 ||
            echo "could not install them all (see $PACKAGES_LOG); tests that need them are skipped"
    fi
    [ -x $python ] || python=python3
fi
[ -e "$TOROID_DATA/gpt2_vocab.bpe" ] || [ ! -x data/gpt2_bpe.sh ] || timeout 60 data/gpt2_bpe.sh >/dev/null 2>&1

# --- builds ---
tests() { for f in dev/test/test_*.c; do basename "$f" .c; done; }
build() { make -j"$jobs" BUILD="$1" "${@:2}"; }
build_clang() { build build/clang CC=clang build/clang/train_gpt2 build/clang/test_gpt2 tests benches; }
build_openblas() { # kernels of one instruction set: they are not what is tested here; -O2: some warnings come with it alone
    build build/openblas BLAS=openblas CPU_ISAS=portable OPT=-O2 build/openblas/test/test_matmul build/openblas/test_gpt2
}
build_neon() {
    local target=()
    for t in matmul kernels attention decode; do target+=("build/neon/test/test_$t"); done
    build build/neon CC=aarch64-linux-gnu-gcc "${target[@]}"
}
build_tsan() { build build/tsan SANITIZE=thread OPT=-O1 CPU_ISAS=portable build/tsan/test/test_comm; }
build_sanitized() { build build/asan SANITIZE=address,undefined OPT='-O1' build/asan/train_gpt2 build/asan/test_gpt2 tests; }
build_cuda_shim() { build build/asan SANITIZE=address,undefined OPT='-O1' build-cuda-shim; }

run build-gcc build build train_gpt2 test_gpt2 tests benches
run build-clang needs clang build_clang
run build-sanitized build_sanitized
run build-cuda-shim build_cuda_shim
run build-tsan build_tsan
run build-openblas build_openblas
run build-neon needs "aarch64-linux-gnu-gcc qemu-aarch64" build_neon

# --- the tree ---
check_format() { git ls-files '*.c' '*.h' '*.cu' '*.cuh' | xargs clang-format --dry-run --Werror; }
check_scripts() { git ls-files '*.sh' .ci/run | xargs shellcheck -x -e SC1091; }
queue format needs "clang-format git" check_format
queue includes dev/check_includes.sh
queue scripts needs "shellcheck git" check_scripts
drain

# --- unit tests: those with ranks, deadlines or other processes alone, the rest side by side; all of each with gcc, what
# may differ (TEST_QUICK) with clang and the sanitizers ---
alone='^test_(comm|control|data_parallel|drain|ckpt_policy|ckpt_processes)'
unit() { # unit SUFFIX COMMAND...: all unit tests; the name of each is the command's last argument
    local suffix=$1 t
    shift
    for t in $(tests); do [[ $t =~ $alone ]] || queue "$t$suffix" "$@" "$t"; done
    drain
    for t in $(tests); do [[ ! $t =~ $alone ]] || run "$t$suffix" "$@" "$t"; done
}
with_gcc() { "build/test/$1"; }
with_clang() { TEST_QUICK=1 "build/clang/test/$1"; }
sanitized() { # Open MPI leaves memory behind in modules unloaded by then: leaks are not counted where it runs
    local options=$ASAN_OPTIONS
    [ "$1" != test_comm ] || options=detect_leaks=0
    TEST_QUICK=1 ASAN_OPTIONS=$options "build/asan/test/$1"
}
unit "" with_gcc
unit -clang needs clang with_clang
export ASAN_OPTIONS=detect_leaks=1:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1
unit -sanitized sanitized
threads() { # races between the threads of a rank; Open MPI itself is not built for it
    TEST_QUICK=1 TSAN_OPTIONS="halt_on_error=1 suppressions=dev/test/tsan.supp" build/tsan/test/test_comm "$1"
}
for b in shm torus mpi; do run "test_comm-$b-threads" threads $b; done
neon() { qemu-aarch64 -L /usr/aarch64-linux-gnu "build/neon/test/$1"; }
for t in matmul kernels attention decode; do queue "test_$t-neon" needs qemu-aarch64 neon "test_$t"; done
drain
run test_matmul-openblas build/openblas/test/test_matmul

# --- the CUDA kernels, run on the CPU ---
run cuda-shim dev/cuda_shim/test.sh build/asan

# --- parity and the whole program ---
run parity build/test_gpt2
run parity-clang needs clang build/clang/test_gpt2
run parity-bf16 build/test_gpt2 --precision=bf16
run parity-openblas build/openblas/test_gpt2
run parity-sanitized build/asan/test_gpt2
beside='^test_(ckpt_command|cli|data_scripts|launch|metrics|options|plot|tokenizer|transformers)\.py$' # of one thread
programs() { for f in dev/test/test_*.py; do basename "$f"; done; }
for t in $(programs); do [[ ! $t =~ $beside ]] || queue "$t" $python "dev/test/$t"; done
drain
for t in $(programs); do [[ $t =~ $beside ]] || run "$t" $python "dev/test/$t"; done

echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ] && [ "$passed" -gt 0 ]
