"""What the paper prints in its Tables I to III (docs/method.md, section 8), by other protocols than ours.
Which variant of ours a row is of, `plan` says."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class PaperRow:
    """A row of the paper: its name there, its scores by dataset of ours, and its parameters in units of 2^20, of the
    generator with its CLIP tower ("GPs") and of both networks ("TPs")."""

    name: str
    clip_score: Mapping[str, str] = field(default_factory=dict)
    fid: Mapping[str, str] = field(default_factory=dict)
    parameters: tuple[str, str] | None = None

    def scores(self, dataset: str) -> str:
        """What the row says of a dataset, for people; empty if it says nothing."""
        found = {"FID": self.fid.get(dataset), "CLIP score": self.clip_score.get(dataset)}
        return ", ".join(f"{name} {value}" for name, value in found.items() if value)


_GALIP = {"birds": "31.60", "flowers": "31.77", "faces": "27.95"}
_RATLIP = {"birds": "32.03", "flowers": "31.94", "faces": "28.91"}

TABLE_1 = {
    row.name: row
    for row in (
        PaperRow("AttnGAN", {"faces": "21.15"}, {"birds": "23.98", "faces": "125.98"}),
        PaperRow("LAFITE", {"birds": "31.25"}, {"birds": "14.58"}),
        PaperRow(
            "DF-GAN", {"birds": "29.20", "flowers": "26.67", "faces": "24.41"}, {"birds": "14.81", "faces": "137.6"}
        ),
        PaperRow("GALIP", _GALIP, {"birds": "10", "faces": "94.45"}),
        PaperRow("RATLIP", _RATLIP, {"birds": "13.28", "faces": "81.48"}),
    )
}

# By size of the recurrent state. The row "hide=0" is left out: the released code, on which the table was measured,
# cannot build it, and its score is that of Table III's RAT without attention.
TABLE_2 = {
    size: PaperRow(f"hide={size}", {"birds": score}, parameters=parameters)
    for size, score, parameters in (
        (4, "30.81", ("132.09", "161.47")),
        (8, "31.38", ("132.27", "161.65")),
        (16, "31.02", ("132.57", "161.95")),
        (32, "31.89", ("133.25", "162.63")),
        (64, "32.03", ("134.68", "164.06")),
        (128, "32.12", ("137.93", "167.31")),
    )
}

TABLE_3 = {
    row.name: row
    for row in (
        PaperRow("Baseline", _GALIP),
        PaperRow("RAT", {"birds": "31.62", "flowers": "31.83", "faces": "27.63"}),
        PaperRow("RAT+ATT", _RATLIP),
    )
}
