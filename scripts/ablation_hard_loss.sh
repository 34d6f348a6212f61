#!/usr/bin/env bash
# Reproduces the paper's "effects of the AEA-based hard loss": without it, with it, with it and the attack; then, with
# SWEEP=1 (the default), beta, pa and the attack's bound, one at a time.
#   DATASET TEACHER STUDENT  the task                      (digits resnet20 resnet8)
#   SEEDS FLAGS SWEEP        "0 1 2", flags for every run, whether to sweep
# Flags go to scripts/ablation.py (--jobs 2, --executor slurm, --dry_run): see its --help.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
prepare requirements.txt

dataset=${DATASET:-digits} teacher=${TEACHER:-resnet20} student=${STUDENT:-resnet8}
seeds=${SEEDS:-0 1 2} flags=${FLAGS:-}
name=${NAME:-hard-loss-$dataset-$teacher-$student}
task="--mode anew --dataset $dataset --teacher $teacher --student $student $flags"
settings=(
    "no hard loss: $task"
    "hl, no attack: $task --hl --no_aea"
    "hl: $task --hl"
)
if [ "${SWEEP:-1}" = 1 ]; then
    for beta in 0.03 0.3; do settings+=("hl, beta $beta: $task --hl --beta $beta"); done
    for pa in 0.01 0.1; do settings+=("hl, pa $pa: $task --hl --pa $pa"); done
    for bound in 10 50; do settings+=("hl, pa 0.01, bound $bound: $task --hl --pa 0.01 --attack_bound $bound"); done
fi
python scripts/ablation.py --name "$name" --seeds $seeds \
    --title "Hard loss: $teacher > $student on $dataset" "${settings[@]}" "$@"
