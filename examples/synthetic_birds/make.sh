#!/usr/bin/env bash
# Makes everything under src/ratlip_hf/assets from nothing: the small CLIP, a second one for evaluation, three judges, and
# RATLIP trained against the first CLIP. Took 13 + 24 + 3 x 5 + 80 minutes, each on one CPU core of a busy machine.
# Usage: examples/make_synthetic_birds.sh WORK_FOLDER
set -euo pipefail
work="${1:?usage: $0 WORK_FOLDER}"
root="$(cd "$(dirname "$0")/.." && pwd)"
assets="$root/src/ratlip_hf/assets/synthetic_birds"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" OMP_WAIT_POLICY=passive

python -m ratlip_hf.synthetic_birds.small_clip --output_dir "$work/clip" --seed 0
python -m ratlip_hf.synthetic_birds.small_clip --output_dir "$work/eval_clip" --seed 1
python -m ratlip_hf.synthetic_birds.judge --output_dir "$work/judge_1" --seed 1
python -m ratlip_hf.synthetic_birds.judge --output_dir "$work/judge_2" --seed 2
python -m ratlip_hf.synthetic_birds.judge --output_dir "$work/scene_judge" --seed 1 --reads scene
accelerate launch --num_processes 1 --cpu "$root/train_ratlip.py" \
    --config synthetic_birds --clip "$work/clip" --output_dir "$work/gan" --resume_from_checkpoint latest

rm -rf "$assets"/{pipeline,discriminator,judge_1,judge_2,scene_judge,eval_clip}
cp -r "$work"/gan/{pipeline,discriminator} "$work"/{judge_1,judge_2,scene_judge,eval_clip} "$assets"
python -c "
from transformers import CLIPModel
CLIPModel.from_pretrained('$assets/eval_clip').half().save_pretrained('$assets/eval_clip')  # the package stays small"
cp "$work/clip/training_report.json" "$assets/clip_training_report.json"
chmod -R u=rwX,go=rX "$assets"
ratlip evaluate --model synthetic-birds
