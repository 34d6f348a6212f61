#!/usr/bin/env bash
# Reproduces the paper's figure: five teacher>student pairs on CIFAR-10 and CIFAR-100, anew and reuse_common, without
# and with the hard loss, over seeds 0 1 2: 120 runs, resumable, one a GPU at a time or as two arrays of Slurm. Not run
# by us: no table yet.
#   bash scripts/reproduce_cifar.sh --dry_run                  the plan, and the teachers that are missing
#   bash scripts/reproduce_cifar.sh --datasets cifar10 --pairs "vgg11>resnet18" --seeds 0
#   bash scripts/reproduce_cifar.sh --executor slurm --slurm "partition=gpu gpus_per_node=1 time=24:00:00"
# Flags go to scripts/reproduce.py; see its --help. Accuracy is measured where the data set is in data/:
# train_scratch.py fetches it, and so does --flags=--download, for a first call with --jobs 1.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
prepare requirements.txt

python scripts/reproduce.py "$@"
