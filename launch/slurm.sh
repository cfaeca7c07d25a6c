#!/usr/bin/env bash
# Pretrain on the machines of a Slurm job: sbatch launch/slurm.sh RECIPE [a.b=c ...]
# LAUNCH=zero2 sbatch --nodes 4 launch/slurm.sh pretrain/pmmrec runs=/shared/runs hub=/shared/hub cache=/shared/cache
# Whatever it is ended by, it goes on where it was: the folder of the run must be on a disk that all machines share.
#SBATCH --job-name=pmmrec
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=pmmrec-%j.log
# Ten minutes before the time is over the run gets a signal; it keeps its state and ends with 75. They must exceed whatever
# cannot be interrupted: preparing (tokens, pixels, kept states), encoding the items of a domain or ranking its users,
# saving, publishing. Where one of these is longer, raise the 600: a job whose time is over comes back no more.
#SBATCH --signal=USR1@600
set -euo pipefail

mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
rendezvous="${hosts[0]}:$((20000 + SLURM_JOB_ID % 10000))" # two jobs on one machine must not meet
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-8}"

trap : TERM # a preempted job is told as a whole: its tasks answer, this shell waits for them
code=0
# One launcher a machine; the shell in between reads the rank that Slurm gives its task.
# shellcheck disable=SC2016
srun --kill-on-bad-exit=1 bash -c 'exec pmmrec pretrain "$@" --node-rank "$SLURM_NODEID"' pmmrec "$@" \
  --resume --launch "${LAUNCH:-ddp}" --nodes "${#hosts[@]}" --rendezvous "$rendezvous" || code=$?

if [ "$code" -eq 75 ]; then # ended before it was over: its state is kept
  scontrol requeue "$SLURM_JOB_ID" || echo "not requeued here; a preempted job is requeued by Slurm itself" >&2
fi
exit "$code"
