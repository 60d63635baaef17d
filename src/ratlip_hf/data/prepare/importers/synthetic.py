"""Synthetic birds as a corpus like any other: drawn here, nothing is downloaded.
Owns how many of them there are per split; drawing and wording are `synthetic_birds`'."""

from dataclasses import dataclass
from pathlib import Path

from ....synthetic_birds.attributes import SPLITS, BirdAttributes
from ....synthetic_birds.captions import make_captions
from ....synthetic_birds.dataset import render_png
from ....synthetic_birds.renderer import sample_birds, wording_rng
from ..raw_files import clean_captions
from ..source_dataset import TEST, Origin, Record, Report, SourceDataset, SourceOptions

ORIGIN = Origin("Synthetic birds", "", "apache-2.0", "Drawn by ratlip_hf.")
_TEST_SHARE = 10  # one test image per so many for training


@dataclass(frozen=True)
class RenderedImage:
    """A bird that is drawn when it is read."""

    bird: BirdAttributes
    seed: int
    size: int

    def read(self) -> bytes:
        return render_png(self.bird, self.seed, self.size)

    def fingerprint(self) -> str:
        return repr(self)


def read(source: Path | None, options: SourceOptions) -> SourceDataset:
    """Draw attributes and wordings; the test split shows colours that training never does. Nothing is read."""
    report, records = Report(), []
    for split in SPLITS:
        count = max(1, options.num_images // _TEST_SHARE) if split == TEST else options.num_images
        for index, (bird, seed) in enumerate(zip(*sample_birds(split, options.seed, count, split), strict=True)):
            image_id = f"{split}-{index:06d}"
            captions = clean_captions(make_captions(bird, wording_rng(seed)), image_id, report)
            records.append(Record(split, image_id, RenderedImage(bird, seed, options.image_size), captions))
    choices = {"seed": options.seed, "num_images": options.num_images, "image_size": options.image_size}
    return SourceDataset(records, "test shows colour triples that train never shows", report, choices=choices)
