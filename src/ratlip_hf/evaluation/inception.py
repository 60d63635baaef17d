"""Features of the Inception-v3 of 2015, by which the Fréchet inception distance is defined. The network is written as
tables of branches with one module to run them."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from ..utils.files import file_sha256
from ..utils.tensors import load_tensors
from .features import FeatureExtractor

# A convolution: name, output channels, kernel, stride. Padded to keep the size, unless the stride is 2.
_Convolution = tuple[str, int, int | tuple[int, int], int]
# A branch is a chain of steps: a pooling by name, a convolution, or a fork of convolutions that read the same.
_Step = str | _Convolution | list[_Convolution]

_POOLS = {
    # TensorFlow's average pooling does not count the padding.
    "average": lambda x: F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False),
    "maximum": lambda x: F.max_pool2d(x, 3, stride=1, padding=1),
    "halve": lambda x: F.max_pool2d(x, 3, stride=2),
}


def _squares(pooled: int) -> list[list[_Step]]:
    """Mixed_5b to 5d, on a 35 x 35 grid."""
    return [
        [("branch1x1", 64, 1, 1)],
        [("branch5x5_1", 48, 1, 1), ("branch5x5_2", 64, 5, 1)],
        [("branch3x3dbl_1", 64, 1, 1), ("branch3x3dbl_2", 96, 3, 1), ("branch3x3dbl_3", 96, 3, 1)],
        ["average", ("branch_pool", pooled, 1, 1)],
    ]


def _rows_and_columns(width: int) -> list[list[_Step]]:
    """Mixed_6b to 6e, on a 17 x 17 grid: 7 x 7 convolutions as 1 x 7 and 7 x 1."""
    row, column = (1, 7), (7, 1)
    double: list[tuple[int, int | tuple[int, int]]] = [
        (width, 1),
        (width, column),
        (width, row),
        (width, column),
        (192, row),
    ]
    return [
        [("branch1x1", 192, 1, 1)],
        [("branch7x7_1", width, 1, 1), ("branch7x7_2", width, row, 1), ("branch7x7_3", 192, column, 1)],
        [(f"branch7x7dbl_{number}", channels, kernel, 1) for number, (channels, kernel) in enumerate(double, 1)],
        ["average", ("branch_pool", 192, 1, 1)],
    ]


def _forks(pool: str) -> list[list[_Step]]:
    """Mixed_7b and 7c, on an 8 x 8 grid: 3 x 3 convolutions that end in a row and a column side by side."""
    row, column = (1, 3), (3, 1)
    return [
        [("branch1x1", 320, 1, 1)],
        [("branch3x3_1", 384, 1, 1), [("branch3x3_2a", 384, row, 1), ("branch3x3_2b", 384, column, 1)]],
        [
            ("branch3x3dbl_1", 448, 1, 1),
            ("branch3x3dbl_2", 384, 3, 1),
            [("branch3x3dbl_3a", 384, row, 1), ("branch3x3dbl_3b", 384, column, 1)],
        ],
        [pool, ("branch_pool", 192, 1, 1)],
    ]


_TO_17 = [
    [("branch3x3", 384, 3, 2)],
    [("branch3x3dbl_1", 64, 1, 1), ("branch3x3dbl_2", 96, 3, 1), ("branch3x3dbl_3", 96, 3, 2)],
    ["halve"],
]
_TO_8 = [
    [("branch3x3_1", 192, 1, 1), ("branch3x3_2", 320, 3, 2)],
    [
        ("branch7x7x3_1", 192, 1, 1),
        ("branch7x7x3_2", 192, (1, 7), 1),
        ("branch7x7x3_3", 192, (7, 1), 1),
        ("branch7x7x3_4", 192, 3, 2),
    ],
    ["halve"],
]
# Name, input channels, branches. The last block pools by the maximum: an oddity of this graph, kept in its weights.
_BLOCKS = (
    ("Mixed_5b", 192, _squares(32)),
    ("Mixed_5c", 256, _squares(64)),
    ("Mixed_5d", 288, _squares(64)),
    ("Mixed_6a", 288, _TO_17),
    ("Mixed_6b", 768, _rows_and_columns(128)),
    ("Mixed_6c", 768, _rows_and_columns(160)),
    ("Mixed_6d", 768, _rows_and_columns(160)),
    ("Mixed_6e", 768, _rows_and_columns(192)),
    ("Mixed_7a", 768, _TO_8),
    ("Mixed_7b", 1280, _forks("average")),
    ("Mixed_7c", 2048, _forks("maximum")),
)


class _ConvBNReLU(nn.Module):
    def __init__(self, channels: int, out: int, kernel: int | tuple[int, int], stride: int, padded: bool):
        super().__init__()
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (sides[0] // 2, sides[1] // 2) if padded else (0, 0)
        self.conv = nn.Conv2d(channels, out, kernel, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.bn(self.conv(x)))


class _Mixed(nn.Module):
    """Runs branches side by side and concatenates what they end in."""

    def __init__(self, channels: int, branches: list[list[_Step]]):
        super().__init__()
        self.branches = branches
        for branch in branches:
            width = channels
            for step in branch:
                for name, out, kernel, stride in _convolutions(step):
                    self.add_module(name, _ConvBNReLU(width, out, kernel, stride, padded=stride == 1))
                width = out if not isinstance(step, str) else width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self._run(branch, x) for branch in self.branches], dim=1)

    def _run(self, branch: list[_Step], x: torch.Tensor) -> torch.Tensor:
        for step in branch:
            if isinstance(step, str):
                x = _POOLS[step](x)
            else:
                x = torch.cat([getattr(self, name)(x) for name, *_ in _convolutions(step)], dim=1)
        return x


def _convolutions(step: _Step) -> list[_Convolution]:
    return [] if isinstance(step, str) else step if isinstance(step, list) else [step]


class InceptionNetwork(nn.Module):
    """Pixels [B, 3, 299, 299] in [-1, 1) to pooled features [B, 2048]. `fc` belongs to the file, and is not run."""

    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3 = _ConvBNReLU(3, 32, 3, 2, padded=False)
        self.Conv2d_2a_3x3 = _ConvBNReLU(32, 32, 3, 1, padded=False)
        self.Conv2d_2b_3x3 = _ConvBNReLU(32, 64, 3, 1, padded=True)
        self.Conv2d_3b_1x1 = _ConvBNReLU(64, 80, 1, 1, padded=False)
        self.Conv2d_4a_3x3 = _ConvBNReLU(80, 192, 3, 1, padded=False)
        for name, channels, branches in _BLOCKS:
            self.add_module(name, _Mixed(channels, branches))
        self.fc = nn.Linear(2048, 1008)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(pixels)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(_POOLS["halve"](x)))
        x = _POOLS["halve"](x)
        for name, *_ in _BLOCKS:
            x = getattr(self, name)(x)
        return x.mean(dim=(2, 3))


def resize_like_tensorflow1(pixels: torch.Tensor, size: int) -> torch.Tensor:
    """Bilinear resize [B, C, H, W] -> [B, C, size, size] as TensorFlow 1 did it: output pixel i lies at i * H / size.

    torch's places it at (i + 1/2) * H / size - 1/2. Not antialiased when shrinking, as in the original.
    """
    for axis in (2, 3):
        length = pixels.shape[axis]
        # Positions in float32 as in the original: rounding decides on which side of a pixel some of them fall.
        positions = torch.arange(size, dtype=torch.float32, device=pixels.device) * (length / size)
        low = positions.long().clamp(max=length - 1)
        weight = (positions - low).to(pixels.dtype)
        weight = weight[:, None] if axis == 2 else weight
        left, right = pixels.index_select(axis, low), pixels.index_select(axis, (low + 1).clamp(max=length - 1))
        pixels = left + (right - left) * weight
    return pixels


WEIGHTS_NAME = "weights-inception-2015-12-05-6726825d.pth"
WEIGHTS_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"  # 95,628,359 bytes

_SIZE = 299
_AGREEMENT = 1e-4  # of the largest feature: rounding in float32


class InceptionFeatures(FeatureExtractor):
    """Pooled features [B, 2048] of the network of 2015 whose weights torch-fidelity distributes.

    Images are rounded to bytes first, as if they had been saved, then resized to 299 x 299 bilinearly the way of
    TensorFlow 1 and scaled by (x - 128) / 128.

    The graph was written from its description (Szegedy et al. 2016 and the published FID graph: average pooling that
    does not count padding, maximum pooling in the last block, 1008 classes). With random weights it agrees with
    torch-fidelity 0.4.0; `ratlip evaluate --verify_inception FILE` says whether it does with the published ones.

    `released` is what the authors' evaluation does instead (docs/method.md, section 7, pytorch-fid): unrounded images,
    torch's bilinear resize, [-1, 1].
    """

    def __init__(self, network: InceptionNetwork, name: str = "inception-2015-12-05", released: bool = False):
        super().__init__(network, name, network.fc.in_features)
        self.released = released
        self.preprocessing = (
            f"bilinear resize to {_SIZE}, [-1, 1]"
            if released
            else f"rounded to bytes, bilinear resize to {_SIZE} as in TensorFlow 1, (x - 128) / 128"
        )

    @classmethod
    def from_file(
        cls, path: str | os.PathLike, sha256: str = WEIGHTS_SHA256, released: bool = False
    ) -> "InceptionFeatures":
        """Load the weight file that torch-fidelity publishes as `WEIGHTS_NAME`. One whose SHA-256 does not begin with
        `sha256` is not opened. Raises ValueError for no or another file, or weights that do not fit the network."""
        if not Path(path).is_file():
            raise ValueError(f"{path} is no file; {WEIGHTS_NAME} is on the page of torch-fidelity's releases")
        found = file_sha256(path)
        if not sha256 or not found.startswith(sha256.lower()):
            raise ValueError(f"{path} is not the published file: its SHA-256 is {found}, not {sha256 or 'given'}")
        network = InceptionNetwork()
        _load(network, load_tensors(path), path)
        return cls(network, released=released)

    def _features(self, images: torch.Tensor) -> torch.Tensor:
        if self.released:
            return self.network(F.interpolate(images, (_SIZE, _SIZE), mode="bilinear", align_corners=False))
        pixels = ((images + 1) * 127.5).round().clamp(0, 255)
        return self.network((resize_like_tensorflow1(pixels, _SIZE) - 128) / 128)


def verify(path: str | os.PathLike, count: int = 64) -> tuple[bool, list[str]]:
    """Whether a file is the published one, and our features and torch-fidelity's agree on `count` random images to
    rounding; with a line on each for people. Raises ValueError for no file, or weights that do not fit the network."""
    if not Path(path).is_file():
        raise ValueError(f"{path} is no file")
    found = file_sha256(path)
    published = found == WEIGHTS_SHA256
    lines = [f"SHA-256 {found}: {'the published file' if published else f'not the published file, {WEIGHTS_SHA256}'}"]
    pixels = torch.randint(256, (count, 3, 96, 96), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    try:
        theirs = _torch_fidelity_features(path, pixels)
    except ImportError as error:
        return False, [*lines, f"features were not compared: pip install torch-fidelity ({error})"]
    ours = InceptionFeatures.from_file(path, found)(pixels / 127.5 - 1)
    difference = float((ours - theirs).abs().max() / theirs.abs().max())
    agree = difference < _AGREEMENT
    verdict = "they agree" if agree else "they do not agree"
    lines.append(f"features of {count} images: largest difference to torch-fidelity {difference:.1e}, {verdict}")
    return published and agree, lines


@torch.no_grad()
def _torch_fidelity_features(path: str | os.PathLike, pixels: torch.Tensor) -> torch.Tensor:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(path)).eval()
    return torch.cat([network(part)[0] for part in pixels.split(16)])


def _load(network: InceptionNetwork, weights: Mapping[str, torch.Tensor], path: str | os.PathLike) -> None:
    # Counters of training steps, which older files lack and no feature depends on.
    expected = {name for name in network.state_dict() if not name.endswith("num_batches_tracked")}
    given = {name for name in weights if not name.endswith("num_batches_tracked")}
    if wrong := sorted(expected ^ given):
        raise ValueError(f"{path} does not fit the network: {len(wrong)} weights differ, for example {wrong[0]}")
    for name, value in network.state_dict().items():
        if name in expected and value.shape != weights[name].shape:
            shapes = f"{list(weights[name].shape)}, not {list(value.shape)}"
            raise ValueError(f"{path} does not fit the network: {name} has shape {shapes}")
    network.load_state_dict({name: weights[name] for name in expected}, strict=False)
