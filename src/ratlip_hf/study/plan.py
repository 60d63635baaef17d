"""What is compared in Tables I, II and III of the paper, and on which corpora.
Owns the arms as differences from a training configuration, and the published figures beside them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..evaluation.protocols import SYNTHETIC_BIRDS
from ..utils.errors import UserError

# Method section 4: what stands beside the affine layers must not differ between arms.
_BLOCKS = {"bridge_conv": "bn_act", "image_conv": "bn_act"}
_WITH_ATTENTION = {"bridge_conv": "bn_act_sa", "image_conv": "bn_act_sa"}
_PLAIN = {"bridge_conv": "plain", "image_conv": "plain"}


@dataclass(frozen=True)
class Arm:
    """A model of a study: `generator` is what differs from the corpus' configuration, `label` its row in a table."""

    name: str
    label: str
    generator: Mapping = field(default_factory=dict)


@dataclass(frozen=True)
class Corpus:
    """Where a study runs: a shipped training configuration, an evaluation protocol, and the scores that are shown,
    of which the first decides."""

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
    """A table of the paper: its arms, and which pairs of them (better, baseline) are compared.

    `published` are figures of the paper by arm and corpus (docs/method.md, section 8); their protocol is another one.
    """

    name: str
    title: str
    arms: tuple[Arm, ...]
    contrasts: tuple[tuple[str, str], ...] = ()
    published: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    remark: str = ""


_ON_BIRDS_DRAWN = (
    "attribute_accuracy",
    "accuracy_crown",
    "accuracy_belly",
    "accuracy_wing",
    "fid_judge",
    "kid_judge",
    "clip_score",
    "diversity",
)
_ON_PHOTOGRAPHS = ("clip_score", "fid", "kid", "cmmd", "r_precision")

CORPORA = {
    corpus.name: corpus
    for corpus in (
        Corpus(SYNTHETIC_BIRDS, "study_birds", SYNTHETIC_BIRDS, _ON_BIRDS_DRAWN, SYNTHETIC_BIRDS),
        Corpus("birds", "birds", "standard", _ON_PHOTOGRAPHS),
        Corpus("flowers", "flowers", "standard", _ON_PHOTOGRAPHS),
        Corpus("faces", "faces", "standard", _ON_PHOTOGRAPHS),
    )
}

CAT = Arm("cat", "CAT", {"fusion": "cat", **_BLOCKS})
RAT = Arm("rat", "RAT across layers", _BLOCKS)
RAT_SA = Arm("rat_sa", "RAT across layers + shuffle attention (RATLIP)", _WITH_ATTENTION)
GALIP = Arm("galip", "CAT, plain convolutions (GALIP)", {"fusion": "cat", **_PLAIN})
EXTRAS = (
    Arm("rat_per_layer", "RAT, an LSTM per layer", {"recurrence": "per_layer", **_BLOCKS}),
    Arm("rat_plain", "RAT across layers, plain convolutions", _PLAIN),
)
_PUBLISHED_SIZES = {4: "30.81", 8: "31.38", 16: "31.02", 32: "31.89", 64: "32.03", 128: "32.12"}


def _sized(size: int) -> Arm:
    """RAT with a recurrent state of this size; 64 is the default and so the arm of Table III."""
    return RAT if size == 64 else Arm(f"rat_h{size}", f"RAT, h = {size}", {"lstm_hidden": size, **_BLOCKS})


TABLES = {
    table.name: table
    for table in (
        Table(
            "table1",
            "Table I: systems",
            (RAT_SA, GALIP),
            (("rat_sa", "galip"),),
            {
                "galip": {"birds": "FID 10, CLIP score 31.60", "flowers": "CLIP score 31.77", "faces": "FID 94.45"},
                "rat_sa": {"birds": "FID 13.28, CLIP score 32.03", "flowers": "31.94", "faces": "FID 81.48"},
            },
            "Other systems: have them draw the sentences of `ratlip evaluate --write_prompts`, and add the folders by "
            "--images NAME=FOLDER.",
        ),
        Table(
            "table2",
            "Table II: size of the recurrent state",
            (CAT, *map(_sized, _PUBLISHED_SIZES)),
            (),
            {
                "cat": {"birds": "31.62"},
                **{_sized(size).name: {"birds": figure} for size, figure in _PUBLISHED_SIZES.items()},
            },
            "The paper's figures were measured on code whose recurrence ran over the batch (docs/method.md,"
            " section 3).",
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
        Table("extras", "Single runs beside the tables", EXTRAS),
    )
}


def other_system(name: str) -> Arm:
    """Something that is scored by its images only."""
    return Arm(name, name)


def choose_arms(table: Table, names: list[str] | None) -> tuple[Arm, ...]:
    """The arms of a table, or those named. Raises UserError for a name that is none of them."""
    known = {arm.name: arm for arm in table.arms}
    if unknown := [name for name in names or () if name not in known]:
        raise UserError(f"{table.name} has the arms {', '.join(known)}, not {unknown[0]!r}")
    return tuple(known[name] for name in names) if names else table.arms
