#!/usr/bin/env bash
# mpirun_node.sh: a training run with several ranks on this machine. Arguments go to train_gpt2.
#
#   scripts/launch/mpirun_node.sh --preset=tiny --train-data='data/quickstart_train_*.bin' --run=runs/two
#   RANKS=4 THREADS=8 ...     ranks (2), and threads of each (the CPUs divided by the ranks)
#
# Ctrl-C or SIGTERM: the ranks save and exit 75. A second one ends them at once.
set -euo pipefail
cd "$(dirname "$0")/../.."
ranks=${RANKS:-2} cpus=$(nproc)
threads=${THREADS:-$((cpus > ranks ? cpus / ranks : 1))}
command -v mpirun >/dev/null || {
    echo "mpirun_node.sh: mpirun is missing (apt install openmpi-bin)" >&2
    exit 1
}
options=(--bind-to none) # the trainer's threads spread over the CPUs by themselves
((ranks <= cpus)) || options+=(--oversubscribe)
[ "$(id -u)" != 0 ] || options+=(--allow-run-as-root)
export OMP_NUM_THREADS="$threads"
. scripts/launch/mpirun.sh
launch -np "$ranks" "${options[@]}" "${PROGRAM:-./train_gpt2}" "$@"
