#!/usr/bin/env bash
# What made methods_cifar10_jpeg.csv, from the root of the repository: all methods on CIFAR-10 re-encoded as JPEG, five
# minutes a run. $1: the folder with train/ and val/, $2: the teacher's file; other arguments go to compare_methods.py.
# The teacher: python train_scratch.py --dataset imagefolder:$1 --img_size 32 --mean .4914 .4822 .4465
#     --std .2023 .1994 .2010 --model resnet20 --batch_size 128 --lr 0.1 --epochs 16 --output $2
set -euo pipefail
# Steps a round fit five minutes on two cores; weights and rates are the presets' of CIFAR or, of the methods without a
# pool, those of CMI's and Fast-Datafree's common frame.
frame="--ngf 32 --ep_steps 150"
exec python scripts/compare_methods.py --name methods_cifar10_jpeg --budget_seconds 300 \
    --dataset "imagefolder:$1" --teacher_path "$2" --teacher resnet20 --student resnet8 \
    --flags "--img_size 32 --mean .4914 .4822 .4465 --std .2023 .1994 .2010 --batch_size 128 --kd_steps 150 --lr 0.1" \
    --methods \
    aeahl_rg fast_meta fast kd scratch noise \
    "nayer: --method nayer --synthesis_batch_size 250 --loops 1 --warmup_loops 2 --g_steps 20" \
    "cmi: --method cmi --synthesis_batch_size 128 --g_steps 60 --negatives 1024" \
    "deepinversion: --method deepinversion --adi 1 --g_steps 100" \
    "dafl: --method dafl $frame --kd_steps 5 --adam_betas .5 .999 --act 1e-3 --balance 20" \
    "zskt: --method zskt $frame --kd_steps 10 --lr 2e-3" \
    "dfad: --method dfad $frame --kd_steps 5" \
    "dfq: --method dfq $frame --kd_steps 10 --bn_form l2 --bn 1 --oh 1 --balance 20 --ent 0" \
    "mad: --method mad $frame --kd_steps 5" \
    "${@:3}"
