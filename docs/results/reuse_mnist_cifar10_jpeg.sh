#!/usr/bin/env bash
# What made reuse_mnist_cifar10_jpeg.csv and reuse_resnet56_cifar10_jpeg.csv, from the root of the repository: AEAHL-RG on
# MNIST and on CIFAR-10 re-encoded as JPEG, anew and from what the other one left, one thread each and two at once. $1, $2: folders of class folders with train/
# and val/ (MNIST's images as PNG in three equal channels; in val/ of both every other held-out image of a class); $3: a
# file whose function resnet20 builds akamaster's ResNet-20, $4: its weights (resnet20-12fca82f.th); $5: the teacher on
# MNIST, of all its training images:
#   python train_scratch.py --dataset imagefolder:$1 --img_size 32 --mean .1307 .1307 .1307 --std .3081 .3081 .3081
#       --no_flip --model resnet20 --batch_size 128 --lr 0.05 --epochs 2 --output $5
# $6: resnet56-4bfd9763.th, of a function resnet56 in $3, whose student begins with what ResNet-20's left
set -euo pipefail
export OMP_NUM_THREADS=1
common="--img_size 32 --student resnet8 --ngf 16 --lr .3 --echo 4 --batch_size 64 --precision fp32"
mnist="--dataset imagefolder:$1 --no_flip --mean .1307 .1307 .1307 --std .3081 .3081 .3081 --teacher resnet20"
mnist+=" --teacher_path $5 --epochs 8"
jpeg="--dataset imagefolder:$2 --mean .4914 .4822 .4465 --std .2023 .1994 .2010"
jpeg+=" --teacher_mean .485 .456 .406 --teacher_std .229 .224 .225"
cifar="$jpeg --teacher $3:resnet20 --teacher_path $4 --epochs 24"
deep="$jpeg --teacher $3:resnet56 --teacher_path $6 --epochs 14"

runs() { # MODE TASK OTHER_TASK
    for seed in 0 1 2; do
        flags="${!2} $common --seed $seed --mode $1 --tag $2-$seed"
        if [ "$1" != anew ]; then
            left=$(echo run/anew-*-"$3"-"$seed")
            flags+=" --reuse_generator_path $left/gan_reuse.pth --reuse_decoder_path $left/decoder.pth"
        fi
        echo "$flags"
    done
}
for task in cifar mnist deep; do runs anew $task; done | xargs -P 2 -L 1 python main.py
for mode in reuse_common reuse_finetune reuse_fix; do
    runs $mode cifar mnist
    runs $mode mnist cifar
    if [ $mode = reuse_common ]; then runs $mode deep cifar; fi
done | xargs -P 2 -L 1 python main.py
