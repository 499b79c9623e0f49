#!/usr/bin/env bash
# mpirun_hosts.sh HOSTFILE: a training run on the hosts of an Open MPI host file, over ssh. Other arguments go to
# train_gpt2. The repository and the data are at the same path on every host (a shared folder, or copies).
#
#   scripts/launch/mpirun_hosts.sh hosts --preset=gpt2 --train-data='/data/fineweb_train_*.bin' --run=/data/runs/a
#
# The host file has a line for each host, such as "node1 slots=1". Ranks are numbered in its order, which is then also
# the order of places of --topology, x fastest; every error names ranks with their hosts.
#
#   THREADS=16      threads of each rank (each host's CPUs, divided by its ranks)
#   NETWORK=eth0    interface or subnet (10.0.0.0/24) for MPI, where hosts have several
#
# Ctrl-C or SIGTERM: the ranks save and exit 75. A second one ends them at once.
set -euo pipefail
cd "$(dirname "$0")/../.."
if [ $# -lt 1 ] || [ ! -r "$1" ]; then
    sed -n '2,/^set /{/^# \{0,1\}/s///p}' "$0" >&2
    exit 2
fi
hostfile=$1
shift
ranks=$(awk '!/^[[:space:]]*(#|$)/ {
    n = 1
    for (i = 2; i <= NF; i++) if ($i ~ /^slots=[0-9]+$/) n = substr($i, 7)
    sum += n
} END {print sum + 0}' "$hostfile")
((ranks > 0)) || {
    echo "mpirun_hosts.sh: $hostfile names no host (a line is 'node1 slots=1')" >&2
    exit 2
}
options=(--map-by slot --bind-to none -x PATH)
[ -z "${THREADS:-}" ] || options+=(-x "OMP_NUM_THREADS=$THREADS")
[ -z "${NETWORK:-}" ] || options+=(--mca btl_tcp_if_include "$NETWORK" --mca oob_tcp_if_include "$NETWORK")
[ "$(id -u)" != 0 ] || options+=(--allow-run-as-root)
. scripts/launch/mpirun.sh
launch -np "$ranks" --hostfile "$hostfile" --wdir "$PWD" "${options[@]}" "${PROGRAM:-./train_gpt2}" "$@"
