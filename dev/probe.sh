#!/usr/bin/env bash
# probe.sh CC: which optional libraries can be compiled and linked here? Prints make variables; the Makefile keeps them
# in BUILD/config.mk. Says what it found, a line each, on stderr.
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

mpi_code='#include <mpi.h>
int main(void) { return MPI_Init(0, 0) + MPI_Finalize(); }'
mpi_compile=$(mpicc --showme:compile 2>/dev/null) || mpi_compile=
mpi_link=$(mpicc --showme:link 2>/dev/null) || mpi_link=
# shellcheck disable=SC2086
if [ -n "$mpi_link" ] && try "$mpi_code" $mpi_compile $mpi_link; then
    # as system headers: the warnings in them are not ours
    echo "MPI_CFLAGS := -DHAVE_MPI ${mpi_compile//-I/-isystem }"
    echo "MPI_LIBS := $mpi_link"
    echo "  MPI   found: $(mpicc --showme:version 2>/dev/null | head -n 1)" >&2
else
    echo "  MPI   not found (libopenmpi-dev): --comm=mpi is left out" >&2
fi
