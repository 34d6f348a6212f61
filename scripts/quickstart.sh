#!/usr/bin/env bash
# The main job on real data, in fewer rounds than the preset's 56: checks the committed teachers, distils a student without
# data, then a student of a second teacher twice, with the generator of the first run and anew. Ends with a table and
# run/quickstart.png.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
prepare requirements.txt

first=run/anew-digits-resnet20-resnet8-quickstart
second=digits-wrn16_1-resnet8-quickstart

echo; echo "== the committed teachers on the 360 held-out digits"
python scripts/check_teachers.py

echo; echo "== 1/3  resnet20 -> resnet8, anew: no data, everything from scratch"
python main.py --mode anew --epochs 32 --tag quickstart --overwrite

echo; echo "== 2/3  wrn16_1 -> resnet8, reusing the generator of run 1"
python main.py --mode reuse_common --teacher wrn16_1 --epochs 16 --tag quickstart --overwrite \
    --reuse_generator_path $first/gan_reuse.pth --reuse_decoder_path $first/decoder.pth

echo; echo "== 3/3  wrn16_1 -> resnet8, anew, to compare"
python main.py --mode anew --teacher wrn16_1 --epochs 16 --tag quickstart --overwrite

echo
python scripts/compare.py $first run/reuse_common-$second run/anew-$second --picture run/quickstart.png
python scripts/report.py $first run/reuse_common-$second run/anew-$second --output run/quickstart.html
