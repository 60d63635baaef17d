"""From JSON file and command line to a [`TrainingConfig`]: an unknown key is an error, and so is a wrong kind.
Options are called like the fields; a flag may stand alone (`--streaming`) or take true or false."""

import dataclasses
import json
import os
import types
import typing
from pathlib import Path

from ..utils.errors import CommandParser, UserError
from .config import TrainingConfig

SHIPPED = Path(__file__).parent / "configs"
_KINDS = typing.get_type_hints(TrainingConfig)


def load_config(argv: list[str] | None = None) -> TrainingConfig:
    """Defaults, then the JSON file of `--config`, then command-line options; validated.

    `mixed_precision` is resolved: unless it is given, accelerate's launcher says what it is.

    `--config NAME` takes a file, or the name of a configuration that ships with the package.

    Raises:
        UserError: for unknown keys, unreadable files, and values of the wrong kind.
    """
    parser = CommandParser(prog="ratlip_hf.training", description="Train a RATLIP generator.")
    shipped = ", ".join(sorted(path.stem for path in SHIPPED.glob("*.json")))
    parser.add_argument("--config", help=f"JSON file, or one of: {shipped}")
    for item in dataclasses.fields(TrainingConfig):
        flag = {"nargs": "?", "const": "true"} if _KINDS[item.name] is bool else {}
        parser.add_argument(f"--{item.name}", help=item.metadata["help"], metavar="VALUE", **flag)
    options = vars(parser.parse_args(argv))
    values = _read_json(options.pop("config"))
    values |= {name: _parse(name, text) for name, text in options.items() if text is not None}
    config = TrainingConfig(**values)
    config.mixed_precision = config.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    return config.validate()


def _read_json(source: str | None) -> dict:
    if source is None:
        return {}
    path = Path(source) if Path(source).suffix == ".json" else SHIPPED / f"{source}.json"
    try:
        values = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"cannot read configuration {source}: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{source} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{source} must hold one JSON object")
    for name, value in values.items():
        if name not in _KINDS:
            raise UserError(f"{source} has the unknown key {name!r}")
        values[name] = _checked(name, value)
    return values


def _parse(name: str, text: str):
    """The value of an option from its text; 'none' stands for None where that is allowed."""
    kinds = _kinds(name)
    if type(None) in kinds and text.lower() == "none":
        return None
    if str in kinds:
        return text
    try:
        value = json.loads(text.lower() if bool in kinds else text)
    except json.JSONDecodeError:
        value = text
    return _checked(name, value)


def _checked(name: str, value):
    """The value if it is of the right kind; a whole number where a fraction is meant becomes one."""
    kinds = _kinds(name)
    if type(value) is int and float in kinds and int not in kinds:
        value = float(value)
    if type(value) not in kinds:
        raise UserError(f"{name} must be {' or '.join(kind.__name__ for kind in kinds)}, not {value!r}")
    return value


def _kinds(name: str) -> tuple[type, ...]:
    hint = _KINDS[name]
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
