"""Named protocols: for which prompts images are generated, what they are compared with, and in which features.
A score is quoted with the name of one of these and with its record. The small worlds bring protocols of their own."""

from dataclasses import asdict, dataclass

from ..bundled import WORLDS, find_world
from ..utils.errors import UserError

# Kernel and neighbour scores, which need all features at once, take the first images of either set.
KEPT = 5000
CANDIDATES = 99  # mismatched captions of R-precision


@dataclass(frozen=True)
class Protocol:
    """How a model, or a folder of images, is scored.

    Attributes:
        name, summary: for people; the name goes into the record.
        prompts: "every_caption" of the real images once, caption by caption; "random_caption" of each, in shuffled
            passes; or "heldout", the fixed prompts of the small world of the protocol's name.
        passes: how often the prompts are gone through ("every_caption" ends when there are no more captions).
        whole_batches: an incomplete batch of this size at the end of each pass is dropped, as the released code does.
        size: side of the real images.
        resize: how they are brought to it, see [`~ratlip_hf.data.read.transforms.frame`].
        spaces: features in which sets of images are compared: "inception", "inception-released", "dinov2" or "judge".
        rounded: whether images are rounded to bytes, as if they had been saved and read again.
        own_clip_input: how the model's own CLIP gets images; see [`~ratlip_hf.clip.prepare_pixels`].
        seed: of the noise, of random captions, and of the choice of mismatched captions.
    """

    name: str
    summary: str
    prompts: str = "every_caption"
    passes: int | None = None
    whole_batches: int = 1
    size: int = 256
    resize: str = "antialiased"
    spaces: tuple[str, ...] = ()
    rounded: bool = True
    own_clip_input: str = "clip"
    seed: int = 0

    def describe(self) -> dict:
        """Everything above but the summary, for a record."""
        return {name: value for name, value in asdict(self).items() if name != "summary"}


_ALL = (
    Protocol(
        "standard",
        "every test caption once against every test image, antialiased; Inception features",
        spaces=("inception",),
    ),
    Protocol("dinov2", "as standard, in DINOv2 features", spaces=("dinov2",)),
    Protocol("clip", "as standard, in the spaces of CLIPs alone: needs no other network"),
    Protocol(
        "released",
        "what the authors' code does: 12 shuffled passes, a random caption each, unrounded images, their own CLIP",
        prompts="random_caption",
        passes=12,
        whole_batches=32,
        resize="released",
        spaces=("inception-released",),
        rounded=False,
        own_clip_input="released",
    ),
)
_PROTOCOLS = {protocol.name: protocol for protocol in _ALL}
PROTOCOL_NAMES = (*WORLDS, *_PROTOCOLS)


def find_protocol(name: str) -> Protocol:
    """Raises UserError for an unknown name."""
    if name in _PROTOCOLS:
        return _PROTOCOLS[name]
    if world := find_world(name):
        return world.PROTOCOL
    raise UserError(f"--protocol must be one of {', '.join(PROTOCOL_NAMES)}, not {name!r}")
