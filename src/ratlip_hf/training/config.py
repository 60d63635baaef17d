"""Everything that can be set about a training run, with its default, and how it is read from a file and options."""

import dataclasses
import json
import math
import os
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path

from ..bundled import WORLDS
from ..clip import DEFAULT_CLIP
from ..data.read.transforms import ANTIALIASED, VARIANTS
from ..losses import PENALTY_FORMS
from ..models import PRESETS
from ..utils.errors import CommandParser, UserError
from ..utils.files import read_json
from .augmentation import AUGMENTATIONS

PRECISIONS = ("no", "fp16", "bf16")
_WORLDS = " or ".join(WORLDS)


def _option(default, text: str, least: int | None = None, most: int = 2**40):
    """A field with its help text, and the smallest and largest whole number that it takes."""
    kind = "default_factory" if callable(default) else "default"
    return field(metadata={"help": text, "least": least, "most": most}, **{kind: default})


@dataclass
class TrainingConfig:
    """A training run. Every field is a key of the JSON file and an option `--name`; dicts are given as JSON."""

    # Models
    preset: str = _option("ratlip", f"model preset: {', '.join(PRESETS)}")
    generator: dict = _option(dict, "values of the generator's configuration that differ from the preset (JSON)")
    discriminator: dict = _option(
        dict, "values of the discriminator's configuration that differ from the preset (JSON)"
    )
    pretrained_model_name_or_path: str | None = _option(
        None, "fine-tune this pipeline (repository or folder) and its discriminator, instead of the preset"
    )
    revision: str | None = _option(None, "branch, tag or commit of pretrained_model_name_or_path")
    clip: str | None = _option(
        None,
        f"frozen CLIP: repository, folder, or a pipeline's; by default the fine-tuned pipeline's, else {DEFAULT_CLIP}",
    )
    clip_revision: str | None = _option(None, "branch, tag or commit of the CLIP repository")

    # Data
    dataset_name: str | None = _option(None, f"{_WORLDS} or a dataset for datasets.load_dataset")
    train_data_dir: str | None = _option(None, "folder with Parquet files or an image folder, instead of dataset_name")
    data_mixture: dict = _option(
        dict, "folders or datasets and their weights (JSON), instead of dataset_name: {'birds': 3, 'flowers': 1}"
    )
    image_column: str = _option("image", "column with images")
    caption_column: str = _option("captions", "column with one caption or a list of captions")
    box_column: str = _option("bbox", "column with left, top, width, height of the object, where there is one")
    crop_to_box: bool = _option(True, "crop to the box, with a margin, where there is one")
    random_crop: bool = _option(True, "crop at random; off: the middle. Images of the right size stay whole")
    resize: str = _option(ANTIALIASED, f"how images are cropped and scaled: {', '.join(VARIANTS)} (the released code)")
    streaming: bool = _option(False, "read Parquet shards a few row groups at a time instead of the whole dataset")
    data_lanes: int = _option(
        48, "parts of a stream that processes and workers share; best a multiple of their number", least=1, most=4096
    )
    stream_window: int = _option(
        1, "row groups of a shard that each lane of a stream has in memory, and shuffles, together", least=1, most=4096
    )
    stream_memory: int = _option(4096, "megabytes of a stream that a process or worker may hold", least=1)
    text_embeddings: bool = _option(
        False, "compute the captions' embeddings once, or take those of `ratlip data embed`; no text tower in the loop"
    )
    max_train_samples: int | None = _option(
        None, f"use the first N samples; of {_WORLDS}, render N", least=1, most=1000000000
    )
    random_flip: bool = _option(True, "mirror half of the images; off where captions speak of left and right")
    dataloader_num_workers: int = _option(0, "processes that load images for each training process", least=0, most=512)

    # Optimisation (docs/method.md, section 6)
    max_train_images: int = _option(1_000_000, "length of the run in real images seen", least=1)
    train_batch_size: int = _option(16, "real images per process and micro-batch", least=1, most=65536)
    gradient_accumulation_steps: int = _option(1, "micro-batches per step", least=1, most=65536)
    generator_learning_rate: float = _option(1e-4, "Adam, generator")
    discriminator_learning_rate: float = _option(4e-4, "Adam, discriminator")
    final_learning_rate_factor: float = _option(1.0, "learning rates fall to this share over the last third")
    lr_warmup_steps: int = _option(0, "steps over which learning rates rise to their value", least=0)
    adam_beta1: float = _option(0.0, "Adam, both networks")
    adam_beta2: float = _option(0.9, "Adam, both networks")
    adam_epsilon: float = _option(1e-8, "Adam, both networks")
    clip_loss_weight: float = _option(4.0, "lambda of Eq. 8: weight of the CLIP similarity")
    penalty_weight: float = _option(2.0, "k of Eq. 8: weight of the gradient penalty")
    penalty_power: float = _option(6.0, "p of Eq. 8: power of the gradient norm")
    penalty_form: str = _option("summed", f"norm of the two gradients: {', '.join(PENALTY_FORMS)} (the released code)")
    penalty_interval: int = _option(1, "steps between penalties, whose weight is multiplied by this (lazy)", least=1)
    range_weight: float = _option(0.0, "weight of the penalty on pixels beyond [-1, 1]; not in the paper")
    pixel_loss_weight: float = _option(0.0, "weight of an auxiliary discriminator that reads pixels; not in the paper")
    pixel_penalty_weight: float = _option(1.0, "weight of the zero-centred gradient penalties of that discriminator")
    pixel_channels: int = _option(16, "channels of that discriminator at full size", least=1, most=1024)
    ema_decay: float = _option(0.999, "decay of the EMA weights, which are saved and sampled; 0: no averaging")
    max_grad_norm: float | None = _option(None, "clip each network's gradients to this norm")
    augmentation: str = _option(
        "", f"differentiable augmentation of what the discriminator sees, a list of: {', '.join(AUGMENTATIONS)}"
    )
    mixed_precision: str | None = _option(
        None, f"precision of the forward passes: {', '.join(PRECISIONS)}; by default what accelerate is set to"
    )
    gradient_checkpointing: bool = _option(False, "recompute activations: less memory, more time, same results")
    torch_compile: bool = _option(False, "compile the generator and the image tower")

    # Run
    output_dir: str = _option("ratlip-output", "where everything goes")
    seed: int = _option(0, "noise, captions and order are functions of it and of the sample's global index")
    resume_from_checkpoint: str | None = _option(None, "'latest' or a checkpoint folder")
    allow_changes: bool = _option(False, "resume even if data or CLIP are not those that the checkpoint was made with")
    checkpointing_steps: int = _option(1000, "steps between checkpoints", least=1)
    checkpoints_total_limit: int | None = _option(2, "checkpoints kept", least=1)
    logging_steps: int = _option(10, "steps between lines of log.jsonl", least=1)
    report_to: str | None = _option(
        None, "tracker next to log.jsonl: tensorboard, wandb, or another one that accelerate has"
    )
    sample_every: int = _option(8_000, "real images between sample grids", least=1)
    evaluate_every: int | None = _option(
        None, "images between quick evaluations, which keep the best weights", least=1
    )
    evaluation_samples: int = _option(256, "images generated for a quick evaluation", least=1, most=1048576)
    push_to_hub: bool = _option(False, "upload pipeline, samples and model card to the Hub at every checkpoint")
    hub_model_id: str | None = _option(None, "repository on the Hub, name or user/name; by default as output_dir")
    hub_private_repo: bool = _option(False, "make the repository a private one")
    hub_license: str = _option("unknown", "license on the model card, in the Hub's spelling, for example cc-by-nc-4.0")
    dry_run: bool = _option(False, "print configuration, sizes, memory and data, and end")

    @property
    def augmentations(self) -> list[str]:
        """The names listed in `augmentation`."""
        return [name.strip() for name in self.augmentation.split(",") if name.strip()]

    @property
    def clip_source(self) -> str:
        """Where the frozen CLIP comes from."""
        return self.clip or self.pretrained_model_name_or_path or DEFAULT_CLIP

    def images_per_step(self, num_processes: int) -> int:
        """Real images that one step of all processes sees."""
        return self.train_batch_size * num_processes * self.gradient_accumulation_steps

    def to_json(self) -> str:
        """The JSON object that `--config` reads again."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    def validate(self) -> "TrainingConfig":
        """Raise [`UserError`] for a value or a combination that cannot work; returns self."""
        self._validate_values()
        if [self.dataset_name is None, self.train_data_dir is None, not self.data_mixture].count(False) != 1:
            raise UserError("give the data by dataset_name, train_data_dir or data_mixture, one of them")
        if any(type(weight) not in (int, float) or not 0 < weight < math.inf for weight in self.data_mixture.values()):
            raise UserError(f"data_mixture must give each dataset a positive weight, not {self.data_mixture}")
        if self.streaming and (self.max_train_samples is not None or self.dataset_name in WORLDS):
            raise UserError(
                f"streaming reads whole datasets from Parquet files: neither max_train_samples nor {_WORLDS}"
            )
        if self.pretrained_model_name_or_path and (self.generator or self.discriminator):
            raise UserError("generator and discriminator are taken from pretrained_model_name_or_path as they are")
        return self

    def _validate_values(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                listed = ", ".join(filter(None, choices))
                raise UserError(f"{name} must be one of {listed}, not {getattr(self, name)!r}")
        if unknown := [name for name in self.augmentations if name not in AUGMENTATIONS]:
            raise UserError(f"augmentation must list some of {', '.join(AUGMENTATIONS)}, not {unknown[0]!r}")
        for item in dataclasses.fields(self):
            value, least = getattr(self, item.name), item.metadata["least"]
            if least is not None and value is not None and value < least:
                raise UserError(f"{item.name} must be at least {least}, not {value}")
            if type(value) is int and value > item.metadata["most"]:
                raise UserError(f"{item.name} must be at most {item.metadata['most']}, not {value}")
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"{item.name} must be finite, not {value}")
        for name in ("generator_learning_rate", "discriminator_learning_rate", "penalty_power", "max_grad_norm"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"{name} must be positive, not {value}")
        for name in _WEIGHTS:
            if getattr(self, name) < 0:
                raise UserError(f"{name} must not be negative, not {getattr(self, name)}")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"ema_decay must lie in [0, 1), not {self.ema_decay}")
        if not 0 <= self.final_learning_rate_factor <= 1:
            raise UserError(f"final_learning_rate_factor must lie in [0, 1], not {self.final_learning_rate_factor}")


_WEIGHTS = ("clip_loss_weight", "penalty_weight", "range_weight", "pixel_loss_weight", "pixel_penalty_weight")
_CHOICES = {
    "preset": PRESETS,
    "resize": VARIANTS,
    "mixed_precision": (None, *PRECISIONS),
    "penalty_form": PENALTY_FORMS,
}
SHIPPED = Path(__file__).parent / "configs"
_KINDS = typing.get_type_hints(TrainingConfig)


def load_config(argv: list[str] | None = None) -> TrainingConfig:
    """Defaults, then the JSON file of `--config`, then command-line options; validated.

    `--config` takes a file, or the name of a configuration that ships with the package. Unless `mixed_precision` is
    given, accelerate's launcher says what it is.

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
        values = read_json(path)
    except OSError as error:
        raise UserError(f"cannot read configuration {source}: {error.strerror}") from error
    except ValueError as error:
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
    except (ValueError, RecursionError):
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
