"""What is compared in Tables I, II and III of the paper, and on which datasets.

Variants are differences from a training configuration; the published values stand next to them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from .. import bundled
from ..utils.errors import UserError


@dataclass(frozen=True)
class Variant:
    """A model of a study: `generator` is what differs from the dataset's configuration, `label` its row in a table."""

    name: str
    label: str
    generator: Mapping = field(default_factory=dict)


@dataclass(frozen=True)
class Dataset:
    """Where a study runs: a shipped training configuration, an evaluation protocol, and the scores that are shown,
    of which the first decides. `data` is for what needs no prepared folder."""

    name: str
    config: str
    protocol: str
    scores: tuple[str, ...]
    data: str | None = None

    @property
    def outcome(self) -> str:
        """The score that decides."""
        return self.scores[0]


@dataclass(frozen=True)
class Table:
    """A table of the paper: its variants, and which pairs of them (better, baseline) are compared.

    `published` are values of the paper by variant and dataset (docs/method.md, section 8), by another protocol.
    """

    name: str
    title: str
    variants: tuple[Variant, ...]
    contrasts: tuple[tuple[str, str], ...] = ()
    published: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    remark: str = ""

    def choose(self, names: list[str] | None) -> tuple[Variant, ...]:
        """The variants, or those named. Raises UserError for a name that is none of them."""
        known = {variant.name: variant for variant in self.variants}
        if unknown := [name for name in names or () if name not in known]:
            raise UserError(f"{self.name} has the variants {', '.join(known)}, not {unknown[0]!r}")
        return tuple(known[name] for name in names) if names else self.variants


_BIRD_SCORES = (
    "attribute_accuracy",
    "accuracy_crown",
    "accuracy_belly",
    "accuracy_wing",
    "fid_judge",
    "kid_judge",
    "clip_score",
    "diversity",
)
_PHOTO_SCORES = ("clip_score", "fid", "kid", "cmmd", "r_precision")
DATASETS = {
    bundled.NAME: Dataset(bundled.NAME, "study_birds", bundled.NAME, _BIRD_SCORES, bundled.NAME),
    **{name: Dataset(name, name, "standard", _PHOTO_SCORES) for name in ("birds", "flowers", "faces")},
}

# docs/method.md, section 4: what stands next to the affine layers must not differ between variants.
_BLOCKS = {"bridge_conv": "bn_act", "image_conv": "bn_act"}
_WITH_ATTENTION = {"bridge_conv": "bn_act_sa", "image_conv": "bn_act_sa"}
_PLAIN = {"bridge_conv": "plain", "image_conv": "plain"}

CAT = Variant("cat", "CAT", {"fusion": "cat", **_BLOCKS})
RAT = Variant("rat", "RAT across layers", _BLOCKS)
RAT_SA = Variant("rat_sa", "RAT across layers + shuffle attention (RATLIP)", _WITH_ATTENTION)
GALIP = Variant("galip", "CAT, plain convolutions (GALIP)", {"fusion": "cat", **_PLAIN})
_PUBLISHED_SIZES = {4: "30.81", 8: "31.38", 16: "31.02", 32: "31.89", 64: "32.03", 128: "32.12"}


def _sized(size: int) -> Variant:
    """RAT with a recurrent state of this size; 64 is the default and so the variant of Table III."""
    return RAT if size == 64 else Variant(f"rat_h{size}", f"RAT, h = {size}", {"lstm_hidden": size, **_BLOCKS})


_ALL = (
    Table(
        "table1",
        "Table I: systems",
        (RAT_SA, GALIP),
        (("rat_sa", "galip"),),
        {
            "galip": {"birds": "FID 10, CLIP score 31.60", "flowers": "CLIP score 31.77", "faces": "FID 94.45"},
            "rat_sa": {"birds": "FID 13.28, CLIP score 32.03", "flowers": "31.94", "faces": "FID 81.48"},
        },
        "Other systems: let them generate images for the prompts of `ratlip evaluate --write_prompts`, and add the "
        "folders by --images_dir NAME=FOLDER.",
    ),
    Table(
        "table2",
        "Table II: size of the recurrent state",
        (CAT, *map(_sized, _PUBLISHED_SIZES)),
        (),
        {
            "cat": {"birds": "31.62"},
            **{_sized(size).name: {"birds": value} for size, value in _PUBLISHED_SIZES.items()},
        },
        "The paper's values were measured on code whose recurrence ran over the batch (docs/method.md, section 3).",
    ),
    Table(
        "table3",
        "Table III: recurrence and shuffle attention",
        (CAT, RAT, RAT_SA),
        (("rat", "cat"), ("rat_sa", "rat")),
        {
            "cat": {"birds": "31.60", "flowers": "31.77", "faces": "27.95"},
            "rat": {"birds": "31.62", "flowers": "31.83", "faces": "27.63"},
            "rat_sa": {"birds": "32.03", "flowers": "31.94", "faces": "28.91"},
        },
        "The paper's last row also adds BatchNorm and LeakyReLU to every convolution; here all rows have them.",
    ),
    Table(
        "variants",
        "Further variants, single runs",
        (
            Variant("rat_per_layer", "RAT, an LSTM per layer", {"recurrence": "per_layer", **_BLOCKS}),
            Variant("rat_plain", "RAT across layers, plain convolutions", _PLAIN),
        ),
    ),
)
TABLES = {table.name: table for table in _ALL}
