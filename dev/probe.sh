#!/usr/bin/env bash
# probe.sh CC [cuda]: which optional libraries can be compiled and linked here? Prints make variables, which the Makefile
# keeps in BUILD/config.mk and (cuda) BUILD/cuda.mk, and says on stderr, in one line, what was found and what was not.
#
# cuda: nvcc from NVCC, CUDA_HOME, PATH, /usr/local/cuda*, pip; cuBLASLt, NCCL, cuDNN from CUDA_HOME, NCCL_HOME,
# CUDNN_HOME, the toolkit of that nvcc, the system, pip. What is there but cannot be linked is not found.
set -u
cc=$1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# try CODE FLAGS...: does it compile and link?
try() {
    printf '%s\n' "$1" >"$folder/probe.c"
    shift
    "$cc" -o "$folder/probe" "$folder/probe.c" "$@" >"$folder/log" 2>&1
}

probe_mpi() {
    local code='#include <mpi.h>
int main(void) { return MPI_Init(0, 0) + MPI_Finalize(); }' compile link
    compile=$(mpicc --showme:compile 2>/dev/null) || compile=
    link=$(mpicc --showme:link 2>/dev/null) || link=
    # shellcheck disable=SC2086
    if [ -n "$link" ] && try "$code" $compile $link; then
        # as system headers: the warnings in them are not ours
        echo "MPI_CFLAGS := -DHAVE_MPI ${compile//-I/-isystem }"
        echo "MPI_LIBS := $link"
        echo "  MPI   found: $(mpicc --showme:version 2>/dev/null | head -n 1)" >&2
    else
        echo "  MPI   not found (libopenmpi-dev): --comm=mpi is left out" >&2
    fi
}

probe_uring() {
    local code='#include <liburing.h>
int main(void) { struct io_uring ring; return io_uring_queue_init(8, &ring, 0); }'
    if try "$code" -luring; then
        echo "URING_CFLAGS := -DHAVE_URING"
        echo "URING_LIBS := -luring"
        echo "  io_uring   found" >&2
    else
        echo "  io_uring   not found (liburing-dev): checkpoints are written with pwrite" >&2
    fi
}

probe_curl() {
    local code='#include <curl/curl.h>
int main(void) { return curl_easy_setopt(curl_easy_init(), CURLOPT_UPLOAD_BUFFERSIZE, 1L); }' # of 7.62
    if try "$code" -lcurl; then
        echo "CURL_CFLAGS := -DHAVE_CURL"
        echo "CURL_LIBS := -lcurl"
        echo "  libcurl   found" >&2
    else
        echo "  libcurl   not found (libcurl4-openssl-dev): checkpoints go to folders, not to s3://" >&2
    fi
}

# For the crash tests of dev/ckpt_lab alone.
probe_fuse() {
    local code='#define FUSE_USE_VERSION 31
#include <fuse.h>
int main(void) { return fuse_version() == 0; }' compile link
    compile=$(pkg-config --cflags fuse3 2>/dev/null) && link=$(pkg-config --libs fuse3 2>/dev/null) || return
    # shellcheck disable=SC2086
    if try "$code" $compile $link; then
        echo "FUSE_CFLAGS := ${compile//-I/-isystem }"
        echo "FUSE_LIBS := $link"
    fi
}

# The folders of pip's NVIDIA packages: site-packages/nvidia/{cu13,cublas,nccl,...}, of this python and of build/venv.
pip_folders() {
    local python
    for python in python3 build/venv/bin/python; do
        "$python" -c 'import sys; print(*sys.path, sep="\n")' 2>/dev/null
    done | while read -r path; do
        [ -n "$path" ] && ls -d "$path"/nvidia/* 2>/dev/null
    done
}

# find_nvcc: the first that runs; TOP of its dry run is the toolkit's folder even where nvcc is a script or a link.
find_nvcc() {
    local candidate
    for candidate in "${NVCC:-}" "${CUDA_HOME:+$CUDA_HOME/bin/nvcc}" nvcc /usr/local/cuda/bin/nvcc \
        /usr/local/cuda-*/bin/nvcc "${pip[@]/%//bin/nvcc}"; do
        [ -n "$candidate" ] || continue
        "$candidate" --version >"$folder/version" 2>&1 || continue
        nvcc=$(command -v "$candidate")
        top=$("$nvcc" --dryrun probe.cu 2>&1 | sed -n 's/^#\$ TOP=//p')
        top=$(cd "$top" 2>/dev/null && pwd)
        version=$(sed -n 's/.*release \([0-9.]*\).*/\1/p' "$folder/version")
        return 0
    done
    return 1
}

# find_library NAME HEADER CODE FOLDER...: sets flags (compile) and libs (link) to the first folder's that work. pip has
# no libNAME.so, only libNAME.so.N, so the file is named; its folder is where the program will look for it too.
find_library() {
    local name=$1 header=$2 code=$3 root include lib file
    shift 3
    for root in "$@"; do
        for include in "$root/include" "$root/include/x86_64-linux-gnu" "$root/targets/x86_64-linux/include"; do
            [ -e "$include/$header" ] || continue
            for lib in "$root"/{lib,lib64,lib/x86_64-linux-gnu,lib/aarch64-linux-gnu,targets/x86_64-linux/lib}; do
                for file in "$lib/lib$name.so" "$lib/lib$name.so".[0-9]*; do
                    [ -e "$file" ] || continue
                    flags="-isystem $include"
                    libs="-L$lib -Wl,-rpath,$lib -l:${file##*/}"
                    # shellcheck disable=SC2086
                    try "#include <$header>
$code" $flags -isystem "$top/include" $libs "$cudart" -ldl -lrt -lpthread && return 0
                done
            done
        done
    done
    return 1
}

probe_cuda() {
    local found='' missing='' flags libs pip=() top=/nonexistent version='' nvcc='' cudart
    mapfile -t pip < <(pip_folders)
    if ! find_nvcc; then
        echo "  CUDA  nvcc not found (NVCC, CUDA_HOME, PATH, /usr/local/cuda, pip): only the CPU programs can be built" >&2
        return
    fi
    for cudart in "$top"/lib64/libcudart_static.a "$top"/lib/libcudart_static.a \
        "$top"/targets/*/lib/libcudart_static.a ""; do
        [ -e "$cudart" ] && break
    done
    echo "NVCC := $nvcc"
    echo "NVCC_VERSION := $version"
    found="nvcc $version"
    if try '#include <cuda_runtime_api.h>
int main(void) { int n; return cudaGetDeviceCount(&n) == cudaSuccess; }' "-isystem$top/include" "$cudart" -ldl -lrt -lpthread; then
        echo "CUDA_CFLAGS := -isystem $top/include"
        echo "CUDART := $cudart -ldl -lrt -lpthread"
    else
        missing="$missing, cudart"
    fi
    if find_library cublasLt cublasLt.h 'int main(void) { return cublasLtGetVersion() == 0; }' \
        "${CUDA_HOME:-$top}" "$top" "${pip[@]}" /usr /usr/local; then
        echo "CUBLASLT_CFLAGS := $flags"
        echo "CUBLASLT_LIBS := $libs"
        found="$found, cuBLASLt"
    else
        missing="$missing, cuBLASLt (pip install nvidia-cublas): nothing for the GPU can be linked without it"
    fi
    if find_library nccl nccl.h 'int main(void) { int v; return ncclGetVersion(&v) != ncclSuccess; }' \
        "${NCCL_HOME:-$top}" "$top" "${pip[@]}" /usr /usr/local; then
        echo "NCCL_CFLAGS := -DHAVE_NCCL $flags"
        echo "NCCL_LIBS := $libs"
        found="$found, NCCL"
    else
        missing="$missing, NCCL (pip install nvidia-nccl-cu13): --comm=nccl is left out"
    fi
    if find_library cudnn cudnn.h 'int main(void) { return cudnnGetVersion() == 0; }' \
        "${CUDNN_HOME:-$top}" "$top" "${pip[@]}" /usr /usr/local; then
        found="$found, cuDNN (not needed)"
    else
        missing="$missing, cuDNN (not needed)"
    fi
    echo "  CUDA  found: $found${missing:+; not found: ${missing#, }}" >&2
}

if [ "${2:-}" = cuda ]; then
    probe_cuda
else
    probe_mpi
    probe_uring
    probe_curl
    probe_fuse
fi
