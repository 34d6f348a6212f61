#!/usr/bin/env bash
# Reproduces the paper's "effects of the AEA-based hard loss": without it, with it, with it and the attack; then what
# SWEEP names, one at a time: beta, pa, the attack's bound.
#   DATASET TEACHER STUDENT  the task                      (digits resnet20 resnet8)
#   SEEDS FLAGS ATTACK_FLAGS "0 1 2", flags for every run, flags for those with the attack ("--p_width 16")
#   SWEEP PA                 "beta pa bound" (or ""), and of pa the values beside its default ("0.01 0.1")
# Flags go to scripts/ablation.py (--jobs 2, --executor slurm, --dry_run): see its --help.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
prepare requirements.txt

dataset=${DATASET:-digits} teacher=${TEACHER:-resnet20} student=${STUDENT:-resnet8}
seeds=${SEEDS:-0 1 2} flags=${FLAGS:-}
attack="--hl ${ATTACK_FLAGS:-}"
name=${NAME:-hard-loss-${dataset##*/}-${teacher##*/}-$student}
task="--mode anew --dataset $dataset --teacher $teacher --student $student $flags"
settings=(
    "no hard loss: $task"
    "hl, no attack: $task --hl --no_aea"
    "hl: $task $attack"
)
for what in ${SWEEP-beta pa bound}; do
    case $what in
        beta) for beta in 0.03 0.3; do settings+=("hl, beta $beta: $task $attack --beta $beta"); done ;;
        pa) for pa in ${PA:-0.01 0.1}; do settings+=("hl, pa $pa: $task $attack --pa $pa"); done ;;
        bound) for bound in 10 50; do settings+=("hl, pa 0.01, bound $bound: $task $attack --pa 0.01 --attack_bound $bound"); done ;;
        *) echo "error: SWEEP=$what; say beta, pa, bound or nothing" >&2; exit 2 ;;
    esac
done
python scripts/ablation.py --name "${name//[^A-Za-z0-9._=-]/_}" --seeds $seeds \
    --title "Hard loss: $teacher > $student on $dataset" "${settings[@]}" "$@"
