"""Where the package keeps its modules for the `evaluate` library, so that `evaluate.load` takes them offline.
Owns their names; the modules are in the folder `evaluate_modules`."""

from pathlib import Path

EVALUATE_MODULES = (
    "attribute_accuracy",
    "clip_score",
    "cmmd",
    "fid",
    "kid",
    "precision_recall",
    "prompt_diversity",
    "r_precision",
)

_FOLDER = Path(__file__).parents[1] / "evaluate_modules"


def evaluate_path(name: str) -> str:
    """Path of one of `EVALUATE_MODULES`, for `evaluate.load(evaluate_path("fid"))`.

    Raises:
        ValueError: for another name.
    """
    if name not in EVALUATE_MODULES:
        raise ValueError(f"there is no evaluate module {name!r}; there are {', '.join(EVALUATE_MODULES)}")
    return str(_FOLDER / name)
