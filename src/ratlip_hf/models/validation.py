"""Checks of single configuration values, shared by generator and discriminator.
Each raises ValueError with one line that names the value and the rule."""

from collections.abc import Mapping, Sequence


def check_counts(config: Mapping, *names: str) -> None:
    """Sizes must be positive integers."""
    for name in names:
        value = config[name]
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be a positive integer, not {value!r}")


def check_choices(config: Mapping, **choices: Sequence) -> None:
    """Values must be one of a list."""
    for name, allowed in choices.items():
        if config[name] not in allowed:
            raise ValueError(f"{name} must be one of {tuple(allowed)}, not {config[name]!r}")


def check_numbers(config: Mapping, *names: str) -> None:
    """Values must be finite numbers."""
    for name in names:
        value = config[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < float("inf"):
            raise ValueError(f"{name} must be a finite number, not {value!r}")


def check_layers(config: Mapping, name: str) -> None:
    """Layers of the CLIP tower: at least one, 0-based, increasing."""
    layers = config[name]
    sound = isinstance(layers, list | tuple) and len(layers) > 0
    sound = sound and all(isinstance(layer, int) and not isinstance(layer, bool) and layer >= 0 for layer in layers)
    if not sound or list(layers) != sorted(set(layers)):
        raise ValueError(f"{name} must list increasing 0-based layers of the CLIP tower, at least one, not {layers!r}")


def check_text_options(config: Mapping) -> None:
    """Centring is on or off, the norm a positive number or None."""
    check_choices(config, text_center=(False, True))
    if config["text_norm"] is not None:
        check_numbers(config, "text_norm")
        if config["text_norm"] <= 0:
            raise ValueError(f"text_norm must be positive or None, not {config['text_norm']}")
