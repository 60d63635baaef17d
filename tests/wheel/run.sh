#!/usr/bin/env bash
# Builds the wheel, installs it in an environment of its own, and uses it away from the checkout: generate, train, load.
set -euo pipefail
root="$(cd "$(dirname "$0")/../.." && pwd)"
builder="$(cd "$root" && command -v "${BUILDER:-.venv/bin/python}")"
[ "${builder#/}" != "$builder" ] || builder="$root/$builder"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

mkdir "$work/source"
cp -r "$root/src" "$root/setup.py" "$root/README.md" "$work/source"
rm -rf "$work"/source/src/*.egg-info
"$builder" -m build --wheel --no-isolation --outdir "$work" "$work/source" > /dev/null

"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet -c "$root/constraints.txt" "$(ls "$work"/*.whl)[train]"

cd "$work"
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 PATH="$work/venv/bin:$PATH"
ratlip generate "a small red bird with black wings" --output_dir images
accelerate launch --num_processes 1 --cpu -m ratlip_hf.training --config smoke --output_dir run > run.log 2>&1 \
    || { cat run.log; exit 1; }
ratlip generate "a blue bird" --model run/pipeline --output_dir more
python - <<'PYTHON'
import ratlip_hf
from diffusers import DiffusionPipeline

assert "site-packages" in ratlip_hf.__file__, ratlip_hf.__file__
print(type(DiffusionPipeline.from_pretrained("run/pipeline")).__name__, "loaded by diffusers")
PYTHON
ls images/grid.png more/grid.png run/discriminator/config.json > /dev/null
echo "the wheel works"
