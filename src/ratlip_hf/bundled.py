"""What ships inside the package: the synthetic-birds pipeline, its discriminator, and the judges that score it.
Owns their places, their license and the short name by which commands accept them."""

import os
from pathlib import Path

NAME = "synthetic-birds"
LICENSE = "apache-2.0"  # as on its card, in the Hub's spelling
_ROOT = Path(__file__).parent / "assets" / "synthetic_birds"


def model_dir() -> Path:
    """Folder of the bundled pipeline."""
    return _ROOT / "pipeline"


def judge_dirs() -> list[Path]:
    """Folders of the judges that read colours, in order of their seeds."""
    return sorted(_ROOT.glob("judge_*"))


def scene_judge_dir() -> Path:
    """Folder of the judge that reads direction, background, perch and size."""
    return _ROOT / "scene_judge"


def scorer_dir() -> Path:
    """Folder of a CLIP of another seed, with which no bundled generator was trained."""
    return _ROOT / "scorer"


def resolve(source: str | os.PathLike) -> str | os.PathLike:
    """The bundled pipeline's folder for the name "synthetic-birds"; anything else unchanged."""
    return model_dir() if source == NAME else source
