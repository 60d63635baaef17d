"""The generator as training arranges it against its definition: the same images and gradients in float64.
Checkpointing by halves is held to the same, statistics included."""

import copy

import pytest
import torch

from ratlip_hf import RATLIPGenerator
from ratlip_hf.models.blocks import ImageBlock
from ratlip_hf.training.arrangement import LateResizing, checkpoint_by_halves, resize_late
from test_models import TOY, inputs, shake, tower

SIZES = {"nearest": (32, 64, 224), "bilinear": (64,)}


def drawn(generator: RATLIPGenerator) -> torch.Tensor:
    """Images from a tower in float64; gradients lie in the parameters afterwards."""
    encoder = torch.nn.Module.to(shake(tower(image_size=8 * TOY["clip_grid"]), seed=1), torch.float64)
    noise, text = (value.double() for value in inputs(3))
    images = generator(noise, text, encoder).sample
    images.square().mean().backward()
    return images


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("form", ["plain", "bn_act", "bn_act_sa"])
@pytest.mark.parametrize(("mode", "size"), [(mode, size) for mode, sizes in SIZES.items() for size in sizes])
def test_images_gradients_and_statistics_are_those_of_the_definition(mode, size, form, checkpointing):
    options = {
        **TOY,
        "sample_size": size,
        "upsampling": mode,
        "image_conv": form,
        "base_channels": 4,
        "attention_groups": 1,
    }
    defined = shake(RATLIPGenerator(**options)).train()
    torch.nn.Module.to(defined, torch.float64)
    arranged = copy.deepcopy(defined)
    resize_late(arranged)
    if checkpointing:
        arranged.enable_gradient_checkpointing(checkpoint_by_halves)
    torch.testing.assert_close(drawn(arranged), drawn(defined), rtol=1e-10, atol=1e-10)
    for (name, one), two in zip(defined.named_parameters(), arranged.parameters(), strict=True):
        torch.testing.assert_close(two.grad, one.grad, rtol=1e-8, atol=1e-10, msg=name)
    for (name, one), two in zip(defined.named_buffers(), arranged.buffers(), strict=True):
        torch.testing.assert_close(two, one, msg=name)


def test_the_first_fusion_and_the_shortcut_meet_the_small_map_and_half_a_block_is_recomputed_at_a_time():
    generator = RATLIPGenerator(**{**TOY, "upsampling": "nearest"}).train()
    resize_late(generator)
    generator.enable_gradient_checkpointing(checkpoint_by_halves)
    block, events = generator.blocks[-1], []
    for name in ("fuse1", "shortcut", "fuse2"):
        getattr(block, name).register_forward_hook(
            lambda _, given, out, name=name: events.append((name, len(out[0, 0])))
        )
    drawn(torch.nn.Module.to(generator, torch.float64))
    small, large = generator.blocks[-2].size, block.size
    forward = [("fuse1", small), ("shortcut", small), ("fuse2", large)]
    assert events == [*forward, *forward[1:], forward[0]]  # in the backward pass the second half comes first


def test_the_definition_comes_back_and_interpolating_blocks_keep_theirs():
    for mode, kind in (("nearest", LateResizing), ("bilinear", ImageBlock)):
        generator = RATLIPGenerator(**{**TOY, "upsampling": mode})
        names = list(generator.state_dict())
        resize_late(generator)
        assert all(type(block) is kind for block in generator.blocks) and list(generator.state_dict()) == names
        resize_late(generator, late=False)
        assert all(type(block) is ImageBlock for block in generator.blocks)
