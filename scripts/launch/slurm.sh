#!/usr/bin/env bash
# slurm.sh: a training run as a SLURM job, with PMIx or without it. Arguments go to train_gpt2.
#
#   sbatch --nodes=8 scripts/launch/slurm.sh --preset=gpt2 --train-data='/data/fineweb_train_*.bin' --run=/data/runs/a
#
# srun starts the ranks: with PMIx if this srun has it, so that an MPI build finds its peers as under mpirun; without it
# the ranks find each other by SLURM's own variables. Before the time is up SLURM sends SIGTERM: the trainer saves and
# exits with 75, and the job queues itself again; the same command goes on where it stopped.
#SBATCH --job-name=toroid
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?start this with sbatch}"
[ -x "${PROGRAM:=./train_gpt2}" ] || {
    echo "slurm.sh: $PROGRAM is missing in $PWD (run make train_gpt2, submit from the repository)" >&2
    exit 1
}
if srun --mpi=list 2>&1 | grep -qw pmix; then mpi=pmix; else mpi=none; fi
export OMP_NUM_THREADS=${THREADS:-$((${SLURM_CPUS_ON_NODE:-1} / ${SLURM_NTASKS_PER_NODE:-1}))}
echo "slurm.sh: job $SLURM_JOB_ID, $SLURM_NTASKS ranks on ${SLURM_JOB_NODELIST:-?}, --mpi=$mpi, restart ${SLURM_RESTART_COUNT:-0}"

# --kill-on-bad-exit: if one rank dies, the others go too. 75: stopped and saved.
code=0
srun --mpi="$mpi" --kill-on-bad-exit=1 --cpu-bind=none "$PROGRAM" "$@" || code=$?
if [ "$code" = 75 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
