#!/usr/bin/env bash
# What made methods_cifar10_jpeg.csv, from the root of the repository: all methods on CIFAR-10 re-encoded as JPEG, five
# minutes a run. $1: the folder with train/ and val/, $2: the teacher's file; other arguments go to compare_methods.py.
# The teacher: python train_scratch.py --dataset imagefolder:$1 --img_size 32 --mean .4914 .4822 .4465
#     --std .2023 .1994 .2010 --model resnet20 --batch_size 128 --lr 0.1 --epochs 16 --output $2
#
# Chosen by us without a look at the results: the student's batches of 128 and rate of 0.1 for all (zskt has its own rate,
# which is Adam's); rounds of 150 steps; what leaves time for several rounds: fewer iterations a round and smaller batches
# of images (nayer 250 and 1 + 2 warm-up loops, cmi 128 with 1,024 negatives and lr_g 2e-3, deepinversion 128); a slimmer
# generator where it makes every batch of the student's. --epochs counts for the share of warm-up alone. Other values are
# published ones: of the methods' own code, of dafl, dfq and mad those of CMI's and Fast-Datafree's comparison, but for the
# generator's output and mode (docs/methods.md; there a sigmoid, and eval mode while the student learns) and dfq's
# Nesterov momentum and cosine of lr_g, which are of da2so's code.
set -euo pipefail
exec python scripts/compare_methods.py --name methods_cifar10_jpeg --budget_seconds 300 \
    --dataset "imagefolder:$1" --teacher_path "$2" --teacher resnet20 --student resnet8 \
    --flags "--preset paper --img_size 32 --mean .4914 .4822 .4465 --std .2023 .1994 .2010 --batch_size 128 --kd_steps 150 --lr 0.1" \
    --methods \
    aeahl_rg \
    "fast_meta: --method fast_meta --epochs 220 --reset_l0 .636" \
    "fast: --method fast --epochs 220" \
    "nayer: --method nayer --epochs 120 --synthesis_batch_size 250 --loops 1 --warmup_loops 2 --g_steps 20" \
    "cmi: --method cmi --synthesis_batch_size 128 --g_steps 60 --lr_g 2e-3 --negatives 1024" \
    "deepinversion: --method deepinversion --synthesis_batch_size 128 --adi 1 --g_steps 100" \
    "dafl: --method dafl --ngf 32 --ep_steps 150 --kd_steps 5 --nz 512 --adam_betas .5 .999 --act 1e-3 --balance 20" \
    "zskt: --method zskt --ngf 32 --ep_steps 150 --kd_steps 10 --nz 100 --lr 2e-3 --at 2500" \
    "dfad: --method dfad --ngf 32 --ep_steps 150 --kd_steps 5 --weight_decay 5e-4 --lr_steps .2 .4 --lr_g_steps .2 .4" \
    "dfq: --method dfq --ngf 32 --ep_steps 150 --kd_steps 10 --bn_form l2 --bn 1 --oh 1 --balance 20 --ent 0" \
    "mad: --method mad --ngf 32 --ep_steps 150 --kd_steps 5" \
    kd scratch noise \
    "${@:3}"
