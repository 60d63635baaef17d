"""What is compared in Tables I, II and III of the paper, and on which datasets.

Variants are differences from a training configuration; rows of the paper stand next to them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from .. import bundled
from ..utils.errors import UserError
from .paper_rows import TABLE_1, TABLE_2, TABLE_3, PaperRow


@dataclass(frozen=True)
class Variant:
    """A model of a study: `generator` is what differs from the dataset's configuration, `label` its row in a table."""

    name: str
    label: str
    generator: Mapping = field(default_factory=dict)


@dataclass(frozen=True)
class Dataset:
    """Where a study runs: a shipped training configuration, an evaluation protocol, and the scores that are shown,
    of which the first decides. `data` is for what needs no prepared folder, `passes` for a number of images of each
    prompt that is not the protocol's. A difference of the outcome within ± `margin` is one that does not matter; None
    where nobody has said what matters."""

    name: str
    config: str
    protocol: str
    scores: tuple[str, ...]
    data: str | None = None
    passes: int | None = None
    margin: float | None = None

    @property
    def outcome(self) -> str:
        """The score that decides."""
        return self.scores[0]


@dataclass(frozen=True)
class Table:
    """A table of the paper: its variants, and which pairs of them (better, baseline) are compared.

    Attributes:
        published: rows of the paper by the name of the variant, or of the system, that they are of.
        systems: those that are no variants of ours and are scored from folders of images.
        seeds: runs of each variant, unless other seeds are asked for.
        cells: where the variants are the four cells of two `factors`: whether each has the first and the second.
    """

    name: str
    title: str
    variants: tuple[Variant, ...]
    contrasts: tuple[tuple[str, str], ...] = ()
    published: Mapping[str, PaperRow] = field(default_factory=dict)
    remark: str = ""
    systems: tuple[str, ...] = ()
    seeds: int = 3
    factors: tuple[str, str] | None = None
    cells: Mapping[str, tuple[bool, bool]] = field(default_factory=dict)

    def choose(self, names: list[str] | None) -> tuple[Variant, ...]:
        """The variants, or those named. Raises UserError for a name that is none of them."""
        known = {variant.name: variant for variant in self.variants}
        if unknown := [name for name in names or () if name not in known]:
            raise UserError(f"{self.name} has the variants {', '.join(known)}, not {unknown[0]!r}")
        return tuple(known[name] for name in names) if names else self.variants


_BIRD_SCORES = (
    "all_words_right",
    "attribute_accuracy",
    "accuracy_crown",
    "accuracy_belly",
    "accuracy_wing",
    "accuracy_direction",
    "accuracy_background",
    "accuracy_perch",
    "fid_judge",
    "kid_judge",
    "clip_score",
    "diversity",
)
_PHOTO_SCORES = ("clip_score", "fid", "kid", "cmmd", "r_precision")
DATASETS = {
    bundled.NAME: Dataset(
        bundled.NAME, "study_birds", bundled.NAME, _BIRD_SCORES, bundled.NAME, passes=12, margin=0.01
    ),
    **{name: Dataset(name, name, "standard", _PHOTO_SCORES) for name in ("birds", "flowers", "faces")},
}

# docs/method.md, section 4: what stands next to the affine layers must not differ between variants.
_BLOCKS = {"bridge_conv": "bn_act", "image_conv": "bn_act"}
_WITH_ATTENTION = {"bridge_conv": "bn_act_sa", "image_conv": "bn_act_sa"}
_PLAIN = {"bridge_conv": "plain", "image_conv": "plain"}


def _with_attention(name: str, label: str, **generator) -> Variant:
    """A variant of RATLIP that keeps its shuffle attention."""
    return Variant(name, f"{label} + shuffle attention", {**generator, **_WITH_ATTENTION})


CAT = Variant("cat", "CAT", {"fusion": "cat", **_BLOCKS})
CAT_SA = _with_attention("cat_sa", "CAT", fusion="cat")
RAT = Variant("rat", "RAT across layers", _BLOCKS)
RAT_SA = Variant("rat_sa", "RAT across layers + shuffle attention (RATLIP)", _WITH_ATTENTION)
GALIP = Variant("galip", "CAT, plain convolutions (GALIP)", {"fusion": "cat", **_PLAIN})
RAT_PLAIN = Variant("rat_plain", "RAT across layers, plain convolutions", _PLAIN)
PER_LAYER = _with_attention("rat_sa_per_layer", "RAT (an LSTM per layer)", recurrence="per_layer")
RELEASED = _with_attention("rat_sa_released", "RAT (batch as time, the released code)", recurrence="batch_as_time")
# The paper's h = 64 has the score of its RAT with attention, so all its sizes have attention; ours at 64 is RATLIP.
_SIZED = {
    size: RAT_SA if size == 64 else _with_attention(f"rat_sa_h{size}", f"RAT (h = {size})", lstm_hidden=size)
    for size in TABLE_2
}


_SYSTEMS = ("AttnGAN", "LAFITE", "DF-GAN")


def _against(baseline: Variant, *variants: Variant) -> tuple[tuple[str, str], ...]:
    return tuple((variant.name, baseline.name) for variant in variants if variant != baseline)


_ALL = (
    Table(
        "table1",
        "Table I: systems",
        (RAT_SA, GALIP),
        _against(GALIP, RAT_SA),
        {"rat_sa": TABLE_1["RATLIP"], "galip": TABLE_1["GALIP"], **{name: TABLE_1[name] for name in _SYSTEMS}},
        "Other systems: let them generate images for the prompts of `ratlip evaluate --write_prompts`, and add the "
        "folders by --images_dir NAME=FOLDER.",
        systems=_SYSTEMS,
    ),
    Table(
        "table2",
        "Table II: size of the recurrent state",
        (*_SIZED.values(), RELEASED),
        _against(RAT_SA, *_SIZED.values(), RELEASED),
        {variant.name: TABLE_2[size] for size, variant in _SIZED.items()} | {RELEASED.name: TABLE_2[64]},
        "The paper measured all its sizes on code whose recurrence ran over the batch; its 64 is rat_sa_released "
        "(docs/method.md, section 3). Its row hide=0 is left out, as that code cannot build it. Its TPs contain two "
        "convolutions that nothing uses, 1.13 of 2^20 parameters.",
    ),
    Table(
        "table3",
        "Table III: recurrence and shuffle attention",
        (CAT, CAT_SA, RAT, RAT_SA),
        (("rat", "cat"), ("rat_sa", "rat"), ("rat_sa", "cat"), ("cat_sa", "cat")),
        {"cat": TABLE_3["Baseline"], "rat": TABLE_3["RAT"], "rat_sa": TABLE_3["RAT+ATT"]},
        "The paper's Baseline is GALIP, with plain convolutions, and its last row adds BatchNorm and LeakyReLU along "
        "with attention to every convolution; here all rows have them. The paper has no CAT with attention.",
        seeds=7,
        factors=("recurrence", "shuffle attention"),
        cells={"cat": (False, False), "cat_sa": (False, True), "rat": (True, False), "rat_sa": (True, True)},
    ),
    Table(
        "variants",
        "Further variants",
        (RAT_SA, PER_LAYER, _SIZED[4], _SIZED[16], RAT, RAT_PLAIN),
        (*_against(RAT_SA, PER_LAYER, _SIZED[4], _SIZED[16]), *_against(RAT, RAT_PLAIN)),
    ),
)
TABLES = {table.name: table for table in _ALL}
