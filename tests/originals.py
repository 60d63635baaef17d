"""Files such as the original RATLIP and GALIP programs write, made from small networks of this package.
Their tensors have original names and shapes; `wrapped` puts them into the nestings that occur."""

from collections.abc import Callable, Mapping

import pytest
import torch

from ratlip_hf import RATLIPDiscriminator, RATLIPGenerator
from ratlip_hf.convert.folder import original_networks

FAMILIES = ("ratlip", "galip")
FEATURE_LAYERS = (0, 1, 2)  # of the fixture `small_clip`, which has no layer 8
GENERATORS = {
    "ratlip": {"recurrence": "batch_as_time", "prompt_layers": (1, 2)},
    "galip": {"fusion": "cat", "bridge_conv": "plain", "image_conv": "plain", "prompt_layers": (1, 2)},
}
_DISCRIMINATOR = {"clip_width": 32, "clip_grid": 4, "text_dim": 16, "extractor_channels": 8, "head_channels": 4}


def small_networks(
    family: str, make_generator: Callable[..., RATLIPGenerator], **options
) -> tuple[RATLIPGenerator, RATLIPDiscriminator]:
    """A generator and a discriminator of that family for `small_clip`, their weights off their starts."""
    generator = make_generator(**{**GENERATORS[family], **options})
    torch.manual_seed(1)
    discriminator = RATLIPDiscriminator(
        **_DISCRIMINATOR, feature_layers=FEATURE_LAYERS, unused_shortcuts=True, clip_input="released", gate_init=0.5
    )
    return generator, discriminator


def original_content(family: str, make_generator, image_encoder=None, **options) -> dict[str, dict]:
    """{"netG", "netD", "netC"} of small networks, with the CLIP tower inside if there is one."""
    networks = original_networks(*small_networks(family, make_generator, **options), image_encoder)
    return {name: {key: value.clone() for key, value in tensors.items()} for name, tensors in networks.items()}


def wrapped(networks: Mapping[str, dict], nesting: str) -> dict:
    """The networks as files hold them: "trainer", "networks", "module", "generator", "bare" or "bare module"."""
    if "module" in nesting:
        networks = {
            net: {f"module.{name}": value for name, value in tensors.items()} for net, tensors in networks.items()
        }
    match nesting:
        case "trainer" | "module":
            optimizers = {"optimizer_G": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-4}]}}
            return {"model": dict(networks), "optimizers": optimizers, "epoch": 7}
        case "networks":
            return dict(networks)
        case "generator":
            return {"netG": networks["netG"]}
        case "bare" | "bare module":
            return networks["netG"]
    pytest.fail(f"no nesting {nesting}")
