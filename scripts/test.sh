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

# run NAME COMMAND...: one test.
run() {
    local name=$1 log start code
    shift
    [[ $name =~ $pattern ]] || return 0
    log=$logs/${name//[^A-Za-z0-9_.-]/_}.log
    start=$SECONDS
    "$@" >"$log" 2>&1 </dev/null
    code=$?
    case $code in
    0) passed=$((passed + 1)) && printf 'ok    %-40s %4d s\n' "$name" $((SECONDS - start)) ;;
    77) skipped=$((skipped + 1)) && printf 'skip  %-40s %s\n' "$name" "$(tail -n 1 "$log")" ;;
    *)
        failed=$((failed + 1))
        printf 'FAIL  %-40s exit %d; the end of %s:\n' "$name" $code "$log"
        tail -n 25 "$log" | sed 's/^/        /'
        ;;
    esac
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
build_clang() { build build/clang CC=clang train_gpt2 test_gpt2 tests; }
build_openblas() { build build/openblas BLAS=openblas build/openblas/test/test_matmul build/openblas/test_gpt2; }
build_neon() {
    local target=()
    for t in matmul kernels attention decode; do target+=("build/neon/test/test_$t"); done
    build build/neon CC=aarch64-linux-gnu-gcc "${target[@]}"
}
build_tsan() { build build/tsan SANITIZE=thread OPT=-O1 build/tsan/test/test_comm; }
build_sanitized() { build build/asan SANITIZE=address,undefined OPT='-O1' build/asan/train_gpt2 build/asan/test_gpt2 tests; }
build_cuda_shim() { build build/asan SANITIZE=address,undefined OPT='-O1' build-cuda-shim; }

run build-gcc build build build/train_gpt2 build/test_gpt2 tests benches
run build-clang needs clang build_clang
run build-sanitized build_sanitized
run build-cuda-shim build_cuda_shim
run build-tsan build_tsan
run build-openblas build_openblas
run build-neon needs "aarch64-linux-gnu-gcc qemu-aarch64" build_neon

# --- the tree ---
check_format() { git ls-files '*.c' '*.h' '*.cu' '*.cuh' | xargs clang-format --dry-run --Werror; }
check_scripts() { git ls-files '*.sh' .ci/run | xargs shellcheck -x -e SC1091; }
run format needs "clang-format git" check_format
run includes dev/check_includes.sh
run scripts needs "shellcheck git" check_scripts

# --- unit tests ---
for t in $(tests); do run "$t" "build/test/$t"; done
for t in $(tests); do run "$t-clang" needs clang "build/clang/test/$t"; done
export ASAN_OPTIONS=detect_leaks=1:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1
sanitized() { # Open MPI leaves memory behind in modules that are unloaded by then, so leaks are not counted where it runs
    local options=$ASAN_OPTIONS
    [ "$1" != test_comm ] || options=detect_leaks=0
    ASAN_OPTIONS=$options "build/asan/test/$1"
}
for t in $(tests); do run "$t-sanitized" sanitized "$t"; done
threads() { # races between the threads of a rank; Open MPI itself is not built for it
    TSAN_OPTIONS="halt_on_error=1 suppressions=dev/test/tsan.supp" build/tsan/test/test_comm "$1" quick
}
for b in shm torus mpi; do run "test_comm-$b-threads" threads $b; done
qemu() { qemu-aarch64 -L /usr/aarch64-linux-gnu "$@"; }
for t in matmul kernels attention decode; do run "test_$t-neon" needs qemu-aarch64 qemu "build/neon/test/test_$t"; done
run test_matmul-openblas build/openblas/test/test_matmul

# --- the CUDA kernels, run on the CPU ---
run cuda-shim dev/cuda_shim/test.sh build/asan

# --- parity and the whole program ---
run parity build/test_gpt2
run parity-bf16 build/test_gpt2 --precision=bf16
run parity-openblas build/openblas/test_gpt2
run parity-sanitized build/asan/test_gpt2
for f in dev/test/test_*.py; do run "$(basename "$f")" $python "$f"; done

echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ] && [ "$passed" -gt 0 ]
