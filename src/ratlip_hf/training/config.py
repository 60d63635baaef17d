"""Everything that can be set about a training run: one dataclass, the only home of its defaults.
Owns reading JSON files, command-line overrides and validation; an unknown key is an error."""

import dataclasses
import json
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path

from ..data.transforms import ANTIALIASED, VARIANTS
from ..losses import PENALTY_FORMS
from ..models import PRESETS
from ..utils.errors import CommandParser, UserError

PRECISIONS = ("no", "bf16")
EXAMPLES = Path(__file__).parent / "configs"


def _option(default, text: str):
    settings = {"default_factory": default} if callable(default) else {"default": default}
    return field(metadata={"help": text}, **settings)


@dataclass
class TrainingConfig:
    """A training run. Every field is a key of the JSON file and an option `--name`; dicts are given as JSON."""

    # Models
    preset: str = _option("ratlip", f"model preset: {', '.join(PRESETS)}")
    generator: dict = _option(dict, "values of the generator's configuration that differ from the preset (JSON)")
    discriminator: dict = _option(
        dict, "values of the discriminator's configuration that differ from the preset (JSON)"
    )
    clip: str = _option("openai/clip-vit-base-patch32", "frozen CLIP: repository, folder, or folder of a pipeline")
    clip_revision: str | None = _option(None, "branch, tag or commit of the CLIP repository")

    # Data
    dataset_name: str | None = _option(None, "'synthetic-birds' or a data set for datasets.load_dataset")
    train_data_dir: str | None = _option(None, "folder with Parquet files or an image folder, instead of dataset_name")
    data_mixture: dict = _option(
        dict, "folders or data sets and their weights (JSON), instead of dataset_name: {'birds': 3, 'flowers': 1}"
    )
    image_column: str = _option("image", "column with pictures")
    caption_column: str = _option("captions", "column with one caption or a list of captions")
    box_column: str = _option("bbox", "column with left, top, width, height of the object, where there is one")
    crop_to_box: bool = _option(True, "crop to the box, with a margin, where there is one")
    random_crop: bool = _option(True, "crop at random; off: the middle. Pictures of the right size stay whole")
    resize: str = _option(
        ANTIALIASED, f"how pictures are cropped and scaled: {', '.join(VARIANTS)} (the released code)"
    )
    streaming: bool = _option(False, "read Parquet shards one window at a time instead of the whole data set")
    stream_window: int = _option(2, "shards that are in memory, and shuffled, together when streaming")
    text_embeddings: bool = _option(
        False, "take sentence embeddings that `ratlip data embed` has stored in the folder"
    )
    max_train_samples: int | None = _option(None, "use the first N samples (for synthetic-birds: how many to draw)")
    random_flip: bool = _option(True, "mirror half of the pictures; off where captions speak of left and right")

    # Optimisation (method section 6)
    max_train_images: int = _option(1_000_000, "length of the run in real images seen")
    train_batch_size: int = _option(16, "real images per process and step")
    generator_learning_rate: float = _option(1e-4, "Adam, generator")
    discriminator_learning_rate: float = _option(4e-4, "Adam, discriminator")
    final_learning_rate_factor: float = _option(1.0, "rates fall to this share of themselves over the last third")
    adam_beta1: float = _option(0.0, "Adam, both networks")
    adam_beta2: float = _option(0.9, "Adam, both networks")
    similarity_weight: float = _option(4.0, "lambda of Eq. 8: weight of the CLIP similarity")
    penalty_weight: float = _option(2.0, "k of Eq. 8: weight of the gradient penalty")
    penalty_power: float = _option(6.0, "p of Eq. 8: power of the gradient norm")
    penalty_form: str = _option("summed", f"norm of the two gradients: {', '.join(PENALTY_FORMS)} (the released code)")
    range_weight: float = _option(0.0, "weight of the penalty on pixels beyond [-1, 1]; not in the paper")
    ema_decay: float = _option(0.999, "averaging of the generator that is saved and sampled")
    mixed_precision: str = _option("no", f"precision of the forward passes: {', '.join(PRECISIONS)}")

    # Run
    output_dir: str = _option("ratlip-output", "where everything goes")
    seed: int = _option(0, "noise, captions and order are functions of it and of the sample's global index")
    resume_from_checkpoint: str | None = _option(None, "'latest' or a checkpoint folder")
    checkpointing_steps: int = _option(1000, "steps between checkpoints")
    checkpoints_total_limit: int | None = _option(2, "checkpoints kept")
    sample_steps: int = _option(500, "steps between sample grids")
    logging_steps: int = _option(10, "steps between lines of log.jsonl")

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    def validate(self) -> "TrainingConfig":
        """Raise [`UserError`] for a value or a combination that cannot work; returns self."""
        if self.preset not in PRESETS:
            raise UserError(f"preset must be one of {', '.join(PRESETS)}, not {self.preset!r}")
        if [self.dataset_name is None, self.train_data_dir is None, not self.data_mixture].count(False) != 1:
            raise UserError("give the data by dataset_name, train_data_dir or data_mixture, one of them")
        if self.resize not in VARIANTS:
            raise UserError(f"resize must be one of {', '.join(VARIANTS)}, not {self.resize!r}")
        if any(type(weight) not in (int, float) or not weight > 0 for weight in self.data_mixture.values()):
            raise UserError(f"data_mixture must give each data set a positive weight, not {self.data_mixture}")
        if self.streaming and (self.max_train_samples is not None or self.dataset_name == "synthetic-birds"):
            raise UserError(
                "streaming reads whole corpora from Parquet files: neither max_train_samples nor drawn birds"
            )
        if self.mixed_precision not in PRECISIONS:
            raise UserError(f"mixed_precision must be one of {', '.join(PRECISIONS)}, not {self.mixed_precision!r}")
        if self.penalty_form not in PENALTY_FORMS:
            raise UserError(f"penalty_form must be one of {', '.join(PENALTY_FORMS)}, not {self.penalty_form!r}")
        if self.train_batch_size < 2:
            raise UserError("train_batch_size must be at least 2: mismatched pairs need another caption")
        for name in ("max_train_images", "checkpointing_steps", "sample_steps", "logging_steps", "stream_window"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("max_train_samples", "checkpoints_total_limit"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1 when given, not {getattr(self, name)}")
        for name in ("generator_learning_rate", "discriminator_learning_rate", "penalty_power"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} must be positive, not {getattr(self, name)}")
        for name in (name for name, kind in _KINDS.items() if kind is float):
            if not math.isfinite(getattr(self, name)):
                raise UserError(f"{name} must be finite, not {getattr(self, name)}")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"ema_decay must lie in [0, 1), not {self.ema_decay}")
        if not 0 <= self.final_learning_rate_factor <= 1:
            raise UserError(f"final_learning_rate_factor must lie in [0, 1], not {self.final_learning_rate_factor}")
        return self


_KINDS = typing.get_type_hints(TrainingConfig)


def load_config(argv: list[str] | None = None) -> TrainingConfig:
    """Defaults, then the JSON file of `--config`, then command-line options; validated.

    `--config NAME` takes a file, or the name of a configuration that ships with the package.

    Raises:
        UserError: for unknown keys, unreadable files, and values of the wrong kind.
    """
    parser = CommandParser(prog="ratlip_hf.training", description="Train a RATLIP generator.")
    shipped = ", ".join(sorted(path.stem for path in EXAMPLES.glob("*.json")))
    parser.add_argument("--config", help=f"JSON file, or one of: {shipped}")
    for item in dataclasses.fields(TrainingConfig):
        parser.add_argument(f"--{item.name}", help=item.metadata["help"], metavar="VALUE")
    options = vars(parser.parse_args(argv))
    values = _read_json(options.pop("config"))
    values |= {name: _parse(name, text) for name, text in options.items() if text is not None}
    return TrainingConfig(**values).validate()


def _read_json(source: str | None) -> dict:
    if source is None:
        return {}
    path = Path(source) if Path(source).suffix == ".json" else EXAMPLES / f"{source}.json"
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
        _check_kind(name, value)
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
    _check_kind(name, value)
    return value


def _check_kind(name: str, value) -> None:
    kinds = _kinds(name)
    fits = type(value) in kinds or (float in kinds and type(value) is int)
    if not fits:
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise UserError(f"{name} must be {wanted}, not {value!r}")


def _kinds(name: str) -> tuple[type, ...]:
    hint = _KINDS[name]
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
