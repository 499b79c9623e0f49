#!/usr/bin/env bash
# test.sh BUILD [PATTERN]: runs the tests of the CUDA kernels on the shim, which `make build-cuda-shim` has put into BUILD,
# a line each. Each of the kernel tests runs every kernel forward, in reverse and with threads at random.
set -uo pipefail
build=$1
pattern=${2:-.}
failed=0
run() { # run NAME COMMAND...
    local name=$1
    shift
    [[ $name =~ $pattern ]] || return 0
    echo "--- $name"
    timeout 300 "$@"
    local code=$?
    [ $code = 0 ] || { failed=$((failed + 1)) && echo "FAILED: $name (exit $code)"; }
}

run shim "$build/shim-fp32/test_cuda_shim"
run kernels "$build/shim-fp32/test_kernels"
run kernels-async env SHIM_ASYNC=1 "$build/shim-fp32/test_kernels"
run decode "$build/shim-fp32/test_decode"
run bf16 "$build/shim-bf16/test_cuda_bf16"
[ "$failed" = 0 ]
