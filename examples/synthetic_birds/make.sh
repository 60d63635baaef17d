#!/usr/bin/env bash
# Makes everything under src/ratlip_hf/assets from nothing: the small CLIP, the scorer, three judges, and RATLIP trained
# against the CLIP. On one core of a busy EPYC without bfloat16 the CLIP took 54 minutes.
# Usage: examples/synthetic_birds/make.sh WORK_FOLDER
set -euo pipefail
work="${1:?usage: $0 WORK_FOLDER}"
here="$(cd "$(dirname "$0")" && pwd)"
root="$(cd "$here/../.." && pwd)"
assets="$root/src/ratlip_hf/assets/synthetic_birds"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" OMP_WAIT_POLICY=passive

python "$here/train_clip.py" --output_dir "$work/clip" --seed 0
python "$here/train_scorer.py" --output_dir "$work/scorer"
python "$here/train_judge.py" --output_dir "$work/judge_1" --seed 1
python "$here/train_judge.py" --output_dir "$work/judge_2" --seed 2
python "$here/train_judge.py" --output_dir "$work/scene_judge" --seed 1 --reads scene
accelerate launch --num_processes 1 --cpu "$root/train_ratlip.py" \
    --config synthetic_birds --clip "$work/clip" --output_dir "$work/gan" --resume_from_checkpoint latest

rm -rf "$assets"/{pipeline,discriminator,pixel_discriminator,judge_1,judge_2,scene_judge,scorer}
cp -r "$work"/gan/{pipeline,discriminator} "$work"/{judge_1,judge_2,scene_judge,scorer} "$assets"
# Only training reads it: half precision takes half the room.
python - "$work/gan/pixel_discriminator" "$assets/pixel_discriminator" <<'END'
import sys
from ratlip_hf.models.pixel_discriminator import PixelDiscriminator
PixelDiscriminator.from_pretrained(sys.argv[1]).half().save_pretrained(sys.argv[2])
END
cp "$work/clip/training_report.json" "$assets/clip_training_report.json"
chmod -R u=rwX,go=rX "$assets"
ratlip evaluate --model synthetic-birds
