#!/usr/bin/env bash
# test.sh BUILD [PATTERN]: runs the tests of the CUDA kernels on the shim, which `make build-cuda-shim` has put into BUILD,
# one after the other. Each of the kernel tests runs every kernel forward, in reverse and with threads at random.
set -uo pipefail
build=$1
pattern=${2:-.}
failed=0
export ASAN_OPTIONS=${ASAN_OPTIONS:-detect_leaks=1:allocator_may_return_null=1}
run() { # run NAME COMMAND...
    local name=$1 code
    shift
    [[ $name =~ $pattern ]] || return 0
    echo "--- $name"
    timeout 300 "$@"
    code=$?
    [ $code = 0 ] || { failed=$((failed + 1)) && echo "FAILED: $name (exit $code)"; }
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
[ "$failed" = 0 ]
