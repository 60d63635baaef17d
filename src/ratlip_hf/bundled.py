"""What ships inside the package: the synthetic-birds pipeline with the networks that score it, and the registry of
small worlds, whose images are rendered by code of ours and whose data, protocol and judges need no download."""

import importlib
import os
from pathlib import Path
from types import ModuleType

NAME = "synthetic-birds"
LICENSE = "apache-2.0"  # as on its card, in the Hub's spelling
_ROOT = Path(__file__).parent / "assets" / "synthetic_birds"

# Name of a small world, as data, protocol and dataset kind -> its package.
WORLDS = {NAME: "ratlip_hf.synthetic_birds"}


def find_world(name: str | None, part: str = "world") -> ModuleType | None:
    """A module of a small world, imported when asked for; None for any other name.

    Args:
        name: key of `WORLDS`.
        part: "world" is what training and evaluation use, see `synthetic_birds/world.py`; "dataset" is what
            `ratlip data prepare` uses, and imports no torch.
    """
    return importlib.import_module(f"{WORLDS[name]}.{part}") if name in WORLDS else None


def model_dir() -> Path:
    """Folder of the bundled pipeline."""
    return _ROOT / "pipeline"


def judge_dirs() -> list[Path]:
    """Folders of the judges of colours, in order of their seeds."""
    return sorted(_ROOT.glob("judge_*"))


def scene_judge_dir() -> Path:
    """Folder of the judge of direction, background, perch and size."""
    return _ROOT / "scene_judge"


def scorer_dir() -> Path:
    """Folder of the scorer, which shares neither architecture nor training images with any bundled CLIP."""
    return _ROOT / "scorer"


def resolve(source: str | os.PathLike) -> str | os.PathLike:
    """The bundled pipeline's folder for the name "synthetic-birds"; anything else unchanged."""
    return model_dir() if source == NAME else source
