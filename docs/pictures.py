"""Makes the pictures of explain.md and explore.md, each by the command that stands beneath it there.
Usage: python docs/pictures.py, or `make figures`."""

import shlex
import sys
import tempfile
from pathlib import Path

from PIL import Image

from ratlip_hf.cli.main import main as ratlip

IMAGES = Path(__file__).parent / "images"
_EXPLAINED = 'ratlip explore explain "a yellow bird with a red crown and blue wings"'
# Picture: what the command writes, and the command.
PICTURES = {
    "explore_interpolate.png": (
        "interpolate.png",
        'ratlip explore interpolate "a red bird with blue wings" "a yellow bird with black wings, in the snow"',
    ),
    "explore_edit.png": (
        "edit.png",
        'ratlip explore edit "a red bird with blue wings" "a red bird with yellow wings" '
        '"a green bird with blue wings"',
    ),
    "explore_mix.png": (
        "mix.png",
        'ratlip explore mix "a red bird facing left" "a yellow bird with black wings, in the snow"',
    ),
    "explore_invert.png": (
        "invert.png",
        'ratlip explore invert docs/images/bird.png --prompt "a bird with a red crown, a yellow belly and blue wings" '
        '--edit "a bird with a red crown, a yellow belly and black wings"',
    ),
    "explore_compare.png": (
        "compare.png",
        'ratlip explore compare "a red bird with blue wings" "a white bird with a black crown, at sunset" '
        "--sources synthetic-birds",
    ),
    "explain_word.png": ("explain.png", f"{_EXPLAINED} --word red"),
    "explain_words.png": ("explain_words.png", _EXPLAINED),
    "explain_states.png": ("explain_states.png", _EXPLAINED),
    "explain_steps.png": ("explain_steps.png", _EXPLAINED),
    "explain_gates.png": ("explain_gates.png", _EXPLAINED),
    "explain_angles.png": (
        "angles.png",
        'ratlip explore angles "a red bird with blue wings" "a red bird with yellow wings"',
    ),
}


def make_bird() -> None:
    """`images/bird.png`, the picture that is inverted: a render of held-out colours."""
    from ratlip_hf.synthetic_birds.attributes import BirdAttributes
    from ratlip_hf.synthetic_birds.renderer import render_bird

    bird = BirdAttributes("red", "yellow", "blue", "left", "meadow", "branch", "large")
    render_bird(bird, 7).save(IMAGES / "bird.png", optimize=True)


def shrink(source: Path, target: Path) -> None:
    """A copy in 128 colours, which is a third of the size."""
    Image.open(source).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(target, optimize=True)


def main() -> int:
    make_bird()
    for command in dict.fromkeys(command for _, command in PICTURES.values()):
        with tempfile.TemporaryDirectory() as folder:
            if failed := ratlip([*shlex.split(command)[1:], "--output_dir", folder]):
                return failed
            for picture, (written, of) in PICTURES.items():
                if of == command:
                    shrink(Path(folder) / written, IMAGES / picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
