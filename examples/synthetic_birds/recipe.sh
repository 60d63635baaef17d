#!/usr/bin/env bash
# Short, equal runs that differ from the baseline in one thing each, scored on validation prompts (docs/recipe.md).
# Usage: examples/synthetic_birds/recipe.sh WORK_FOLDER [ARM ...]   WORK_FOLDER/clip64 is a CLIP of train_clip.py.
# An interrupted run goes on where it was; an arm with a record in WORK_FOLDER/recipe.jsonl is done.
set -euo pipefail
work="${1:?usage: $0 WORK_FOLDER [ARM ...]}"
root="$(cd "$(dirname "$0")/../.." && pwd)"
shift
declare -A arms=(
    [baseline]=""
    [seed1]="--seed 1"
    [clip1]="--clip_loss_weight 1"
    [batch64]="--train_batch_size 64"
    [wide]='--generator {"image_conv":"bn_act_sa","upsampling":"nearest","base_channels":32}'
    [bilinear]='--generator {"image_conv":"bn_act_sa","upsampling":"bilinear"}'
    [slow_d]="--discriminator_learning_rate 5e-4"
    [color]="--augmentation color"
    [shift]="--augmentation shift"
    [pixel]="--pixel_loss_weight 1"
    [pixel_clip1]="--pixel_loss_weight 1 --clip_loss_weight 1"
    [pixel_clip1_bilinear]='--pixel_loss_weight 1 --clip_loss_weight 1 --generator {"image_conv":"bn_act_sa","upsampling":"bilinear"}'
    [pixel_clip1_wide]='--pixel_loss_weight 1 --clip_loss_weight 1 --generator {"image_conv":"bn_act_sa","upsampling":"nearest","base_channels":32}'
    [pixel_bilinear]='--pixel_loss_weight 1 --generator {"image_conv":"bn_act_sa","upsampling":"bilinear"}'
    [pixel_clip1_bilinear_shift]='--pixel_loss_weight 1 --clip_loss_weight 1 --augmentation shift
        --generator {"image_conv":"bn_act_sa","upsampling":"bilinear"}'
    [pixel4_clip1]="--pixel_loss_weight 4 --clip_loss_weight 1"
    [pixel_clip1_batch32]="--pixel_loss_weight 1 --clip_loss_weight 1 --train_batch_size 32"
)
order=(baseline pixel clip1 pixel_clip1 shift wide bilinear batch64 slow_d color seed1)
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" OMP_WAIT_POLICY=passive

for arm in "${@:-${order[@]}}"; do
    grep -qs "\"model\": \"$arm/pipeline\"" "$work/recipe.jsonl" && continue
    # The shipped configuration has what these runs found; the baseline is without it.
    # shellcheck disable=SC2086  # options are words
    accelerate launch --num_processes 1 --cpu "$root/train_ratlip.py" --config synthetic_birds --clip "$work/clip64" \
        --pixel_loss_weight 0 --generator '{"image_conv":"bn_act_sa","upsampling":"nearest"}' \
        --max_train_images 24000 --evaluate_every 6000 --checkpointing_steps 250 --output_dir "$work/$arm" \
        --resume_from_checkpoint latest ${arms[$arm]} >>"$work/$arm.log" 2>&1
    (cd "$work" && ratlip evaluate --model "$arm/pipeline" --split validation --max_images 1200 \
        --output_file recipe.jsonl)
done
