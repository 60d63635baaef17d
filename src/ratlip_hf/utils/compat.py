"""What the versions of the libraries that setup.py allows spell differently; the package speaks the newest spelling.
Owns every look at an installed version, so that raising a floor means deleting lines here."""

import diffusers


def for_diffusers(options: dict) -> dict:
    """Keywords of a loading call as the installed diffusers reads them: before 0.40 `dtype` was only `torch_dtype`.

    Those versions ignore `dtype` with a warning and load float32.
    """
    release = tuple(int(part) for part in diffusers.__version__.split(".")[:2])
    if release >= (0, 40):
        return options
    others = {name: value for name, value in options.items() if name != "dtype"}
    return others if options.get("dtype") is None else {**others, "torch_dtype": options["dtype"]}
