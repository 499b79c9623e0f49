#!/usr/bin/env bash
# test.sh BUILD [PATTERN]: runs the tests of the CUDA kernels on the shim, which `make build-cuda-shim` has put into BUILD,
# one a core: a GPU is one thread here. Each of the kernel tests runs every kernel forward, in reverse and with threads at
# random.
set -uo pipefail
build=$1
pattern=${2:-.}
failed=0 names=()
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
export ASAN_OPTIONS=${ASAN_OPTIONS:-detect_leaks=1:allocator_may_return_null=1}
run() { # run NAME COMMAND...
    local name=$1
    shift
    [[ $name =~ $pattern ]] || return 0
    while [ "$(jobs -rp | wc -l)" -ge "$(nproc)" ]; do wait -n; done
    names+=("$name")
    { timeout 300 "$@"; echo $? >"$logs/$name.exit"; } >"$logs/$name" 2>&1 </dev/null &
}
report() { # report NAME: what it said
    local code=1
    echo "--- $1"
    cat "$logs/$1"
    read -r code <"$logs/$1.exit"
    [ "$code" = 0 ] || { failed=$((failed + 1)) && echo "FAILED: $1 (exit $code)"; }
}

run shim "$build/shim-fp32/test_cuda_shim"
for t in kernels decode attention exact; do run "$t" "$build/shim-fp32/test_$t"; done
run kernels-late env SHIM_ASYNC=1 "$build/shim-fp32/test_kernels"
for t in matmul attention; do
    run "cuda-$t-fp32" "$build/shim-fp32/test_cuda_$t"
    run "cuda-$t-bf16" "$build/shim-bf16/test_cuda_$t"
done
run bf16 "$build/shim-bf16/test_cuda_bf16"
run parity "$build/shim-fp32/test_gpt2"
run train python3 dev/test/cuda_train.py "$build"
run ranks python3 dev/test/cuda_ranks.py "$build"
# Device memory through memory of the host, in pieces.
for t in shm torus; do run "staged-$t" "$build/shim-nccl/test_comm" $t quick; done
# Ranks that end in the middle of an operation, as these shall, leave streams behind: leaks are not counted.
run nccl env ASAN_OPTIONS="$ASAN_OPTIONS:detect_leaks=0" "$build/shim-nccl/test_comm" nccl
wait
for name in "${names[@]}"; do report "$name"; done
[ "$failed" = 0 ]
