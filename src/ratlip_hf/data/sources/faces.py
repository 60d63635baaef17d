"""CelebA-tiny: faces drawn from CelebAMask-HQ with captions of Multi-Modal-CelebA-HQ.
Owns the draw: its seed is recorded, and the drawn images are the `image_id` column of the result."""

from pathlib import Path

import numpy as np

from ..captions import captions_beside, clean_captions
from ..corpus import Corpus, FileImage, Origin, Record, Report, SourceOptions
from ..splits import TEST, TRAIN
from .common import image_files, need_folder, stem_id

ORIGIN = Origin(
    "CelebA-tiny: faces with captions",
    "https://github.com/switchablenorms/CelebAMask-HQ",
    "other",
    "Non-commercial research and education only (CelebA). Captions: Multi-Modal-CelebA-HQ.",
)
_IMAGES = ("CelebA-HQ-img", "CelebAMask-HQ/CelebA-HQ-img", "images", "image")
_CAPTIONS = ("text/celeba-caption", "celeba-caption", "text", "captions")


def read(source: Path, options: SourceOptions) -> Corpus:
    """Draw faces that have captions; with fewer than asked for, all are taken and the test share stays the same.

    Raises:
        UserError: when there is no folder of images or none of captions.
    """
    report = Report()
    images = need_folder([source / name for name in _IMAGES], "the folder of faces")
    places = [options.captions] if options.captions else [source / name for name in _CAPTIONS]
    captions = need_folder(places, "the folder of captions")
    usable = {}
    for path in image_files(images):
        sentences = clean_captions(captions_beside(captions / path.stem, report), path.stem, report)
        if sentences:
            usable[path] = sentences
        else:
            report.skip("image without captions", path.name)

    draw, test = options.draw, options.test
    if len(usable) < draw:
        report.notes.append(f"{len(usable):,} usable faces instead of {draw:,}: all are taken")
        draw, test = len(usable), round(len(usable) * test / draw)
    order = np.random.default_rng(options.seed).permutation(len(usable))[:draw]
    paths = list(usable)
    records = [
        Record(
            TRAIN if place < draw - test else TEST,
            stem_id(paths[index], images),
            FileImage(paths[index]),
            usable[paths[index]],
        )
        for place, index in enumerate(order)
    ]
    splits_from = f"drawn here with seed {options.seed}: {draw - test:,} train and {test:,} test of {len(usable):,}"
    return Corpus(records, splits_from, report, choices={"seed": options.seed, "draw": draw, "test": test})
