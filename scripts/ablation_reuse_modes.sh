#!/usr/bin/env bash
# Reproduces the paper's "effects in different reuse modes": one task distilled anew and in the three reuse modes, each
# from what the same first task left.
#   DATASET TEACHER STUDENT      the task                         (digits wrn16_1 resnet8)
#   FIRST_DATASET FIRST_TEACHER  the task that leaves the networks (DATASET resnet20)
#   SEEDS FLAGS FIRST_FLAGS      "0 1 2", flags for every run, others for the first task (FLAGS)
# Flags go to scripts/ablation.py (--jobs 2, --executor slurm, --dry_run): see its --help.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
prepare requirements.txt

dataset=${DATASET:-digits} teacher=${TEACHER:-wrn16_1} student=${STUDENT:-resnet8}
first_dataset=${FIRST_DATASET:-$dataset} first_teacher=${FIRST_TEACHER:-resnet20}
seeds=${SEEDS:-0 1 2} flags=${FLAGS:-} first_flags=${FIRST_FLAGS-${FLAGS:-}}
name=${NAME:-modes-${first_dataset##*/}-${first_teacher##*/}-to-${dataset##*/}-${teacher##*/}-$student}
task="--dataset $dataset --teacher $teacher --student $student $flags"
reuse="--reuse_generator_path {first task}/gan_reuse.pth --reuse_decoder_path {first task}/decoder.pth"

python scripts/ablation.py --name "${name//[^A-Za-z0-9._=-]/_}" --seeds $seeds \
    --title "Reuse modes: $teacher > $student on $dataset, reusing $first_teacher > $student on $first_dataset" \
    "anew: --mode anew $task" \
    "reuse_common: --mode reuse_common $task $reuse" \
    "reuse_finetune: --mode reuse_finetune $task $reuse" \
    "reuse_fix: --mode reuse_fix $task $reuse" \
    "first task: --mode anew --dataset $first_dataset --teacher $first_teacher --student $student $first_flags" "$@"
