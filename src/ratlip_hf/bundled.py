"""What ships inside the package: the synthetic-birds pipeline, its discriminator, and the judges that score it.
Owns their places and the short name by which commands accept them."""

import os
from pathlib import Path

NAME = "synthetic-birds"
_ROOT = Path(__file__).parent / "assets" / "synthetic_birds"


def model_dir() -> Path:
    """Folder of the bundled pipeline."""
    return _ROOT / "pipeline"


def judge_dirs() -> list[Path]:
    """Folders of the judges, in order of their seeds."""
    return sorted(_ROOT.glob("judge_*"))


def resolve(source: str | os.PathLike) -> str | os.PathLike:
    """The bundled pipeline's folder for the name "synthetic-birds"; anything else unchanged."""
    return model_dir() if source == NAME else source
