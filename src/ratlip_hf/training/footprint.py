"""How much room a run takes: bytes of its files, and memory of a process, without allocating what is measured."""

import copy
import math
import weakref
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..clip import FrozenCLIP
from ..models import RATLIPDiscriminator, RATLIPGenerator
from . import pixel_losses as pixels
from .config import TrainingConfig
from .optimization import Optimization
from .samples import StepInputs
from .step import Networks, training_step

MODELS = "pipeline", "discriminator", "pixel_discriminator"  # folders that a run writes when it saves


def weight_bytes(module: nn.Module, trainable_only: bool = False) -> int:
    """Bytes of parameters and buffers, or of the parameters that are trained."""
    values = module.state_dict().values()
    if trainable_only:
        values = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return sum(value.nbytes for value in values)


@dataclass(frozen=True)
class DiskUse:
    """Bytes of one checkpoint, of pipeline and discriminator together, and of all that lies there at the worst."""

    checkpoint: int
    models: int
    peak: int


def disk_use(
    config: TrainingConfig,
    per_step: int,
    generator: RATLIPGenerator,
    discriminator: RATLIPDiscriminator,
    clip: FrozenCLIP,
) -> DiskUse:
    """Room for checkpoints and models in `output_dir`; samples and log are small.

    A checkpoint holds all trained networks, the EMA weights and Adam's two moments. A new one is complete before an
    old one goes, and so are models and the best pipeline, so there is one more of each for a moment.
    """
    networks = (generator, discriminator)
    moments = 2 * _trained_bytes(config, *networks)
    checkpoint = 2 * weight_bytes(generator) + weight_bytes(discriminator) + _pixel_bytes(config, generator) + moments
    pipeline = sum(map(weight_bytes, (generator, clip.text_encoder, clip.image_encoder)))
    models = pipeline + weight_bytes(discriminator) + _pixel_bytes(config, generator)
    written = math.ceil(math.ceil(config.max_train_images / per_step) / config.checkpointing_steps)
    limit = config.checkpoints_total_limit
    lying = written if limit is None else min(written, limit + 1)
    best = pipeline if config.evaluate_every else 0
    return DiskUse(checkpoint, models, lying * checkpoint + 2 * (models + best))


def _pixel_bytes(config: TrainingConfig, generator: RATLIPGenerator) -> int:
    with torch.device("meta"):
        network = pixels.build(config, generator)
    return weight_bytes(network) if network else 0


def _trained_bytes(config: TrainingConfig, generator: RATLIPGenerator, discriminator: RATLIPDiscriminator) -> int:
    trained = sum(weight_bytes(network, trainable_only=True) for network in (generator, discriminator))
    return trained + _pixel_bytes(config, generator)


@dataclass(frozen=True)
class MemoryUse:
    """Bytes per process: all weights with the EMA, gradients, Adam's moments, and what else a step holds."""

    weights: int
    gradients: int
    moments: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.moments + self.activations


def memory_use(
    config: TrainingConfig,
    accelerator: Accelerator,
    generator: RATLIPGenerator,
    discriminator: RATLIPDiscriminator,
    clip: FrozenCLIP,
) -> MemoryUse:
    """Memory of one training process at its peak, from tensor sizes alone; it allocates nothing.

    On a CPU it gave 1 % less than the allocator's own record (docs/training.md); libraries and scratch space of
    kernels come on top.
    """
    trained = _trained_bytes(config, generator, discriminator)
    towers = weight_bytes(clip.image_encoder) + weight_bytes(clip.text_encoder)
    weights = 2 * weight_bytes(generator) + weight_bytes(discriminator) + _pixel_bytes(config, generator) + towers
    step = step_peak_bytes(config, accelerator, generator, discriminator, clip)
    return MemoryUse(weights, trained, 2 * trained, max(0, step - trained))


def step_peak_bytes(
    config: TrainingConfig,
    accelerator: Accelerator,
    generator: RATLIPGenerator,
    discriminator: RATLIPDiscriminator,
    clip: FrozenCLIP,
) -> int:
    """Largest sum of bytes alive at once in a step beyond the weights: activations, gradients, intermediates.

    The step itself is run, on tensors without content.
    """
    fake = FakeTensorMode()
    with FakeCopyMode(fake):
        copies = [copy.deepcopy(module) for module in (generator, discriminator, clip.image_encoder)]
    for network in copies[:2]:
        network.train()
        if config.gradient_checkpointing:
            network.enable_gradient_checkpointing()
    with fake, torch.device(generator.device):
        critic = pixels.build(config, generator)
    with fake, torch.device(generator.device), _PeakOfLiveBytes() as tracked:
        unmoved = [_Unmoved(torch.optim.SGD(network.parameters())) for network in copies[:2]]
        moved = _Unmoved(torch.optim.SGD(critic.parameters())) if critic else None
        nets = Networks(*copies[:2], *unmoved, copies[2], accelerator, config, critic, moved)
        batch, sizes = config.train_batch_size, generator.config
        images, text = torch.empty(batch, 3, *[sizes.sample_size] * 2), torch.empty(batch, sizes.text_dim)
        inputs = StepInputs(images, torch.empty(batch, sizes.noise_dim), text, text, indices=range(batch))
        # Of more micro-batches than two, no more is alive at once.
        training_step(nets, [inputs] * min(2, config.gradient_accumulation_steps))
    return tracked.peak


class _Unmoved(Optimization):
    """Drops gradients without a step: an optimizer's memory is known, and a loss scale needs real numbers."""

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def step(self) -> torch.Tensor:
        self.optimizer.zero_grad()
        return torch.zeros(())


class _PeakOfLiveBytes(TorchDispatchMode):
    """Adds up the storages that operations make and subtracts them when they go; `peak` is the largest sum."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self._known: weakref.WeakSet = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = [x.untyped_storage() for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage(), given)
        return out

    def _count(self, storage: torch.UntypedStorage, given: list[torch.UntypedStorage]) -> None:
        # A view of, or a write into, something older (weights too) takes no room of its own.
        if storage in self._known or any(storage is other for other in given):
            return
        self._known.add(storage)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, storage.nbytes())

    def _forget(self, size: int) -> None:
        self.live -= size
