"""Agreement with the original RATLIP and GALIP programs on seeded weights: max|a-b| / max|ref| <= 1e-4 per tensor.
Recorded excerpts are always checked; the complete golden file when it lies next to the project."""

import copy
from pathlib import Path

import pytest
import torch
from phases import discriminator_phase, generator_loss, seeded_pairs
from recipe import excerpt, seeded_discriminator, seeded_generator, seeded_towers
from safetensors.torch import load_file

from ratlip_hf.clip import image_features_and_embeds, prompted_tower
from ratlip_hf.convert.layout import generator_key_map

RECORDED = load_file(Path(__file__).parent / "parity" / "recorded.safetensors")
GOLDEN = Path(__file__).parents[2] / "shared" / "golden" / "expected.safetensors"
FAMILIES = ("ratlip", "galip")
TOLERANCE = 1e-4


def agree(ours: torch.Tensor, reference: torch.Tensor) -> None:
    ours, reference = ours.detach().double().reshape(reference.shape), reference.double()
    error = ((ours - reference).abs().max() / reference.abs().max()).item()
    assert error <= TOLERANCE, f"relative error {error:.2e}"


@pytest.fixture(scope="module")
def towers():
    return seeded_towers()


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param, seeded_generator(request.param)


@pytest.fixture(scope="module")
def golden():
    if not GOLDEN.exists():
        pytest.skip("the golden file is not here")
    return load_file(GOLDEN)


def test_sentence_embeddings(towers):
    with torch.no_grad():
        embeds = towers[0](input_ids=RECORDED["token_ids"]).text_embeds
    agree(excerpt(embeds), RECORDED["sentence_embeds"])


@pytest.mark.filterwarnings("ignore:recurrence='batch_as_time'")
def test_images(towers, family):
    """RATLIP's released code couples a batch, so its three samples are generated together; GALIP's need not be."""
    name, generator = family
    batch = slice(0, 3) if name == "ratlip" else slice(1, 2)
    with torch.no_grad():
        images = generator(RECORDED["noise"][batch], RECORDED["text_embeds"][batch], towers[1]).sample
    if name == "ratlip":
        agree(excerpt(images), RECORDED["ratlip_images_one_batch"])
    else:
        agree(excerpt(images[0]), RECORDED["galip_image_alone_1"])


@pytest.mark.filterwarnings("ignore:recurrence='batch_as_time'")
def test_generator_loss_passes_through_both_networks(towers):
    """In float32, from noise to the loss of the released code: generator, tower, discriminator and head."""
    generator = seeded_generator("ratlip").train()
    with torch.no_grad():
        inputs = (RECORDED["noise"], RECORDED["text_embeds"])
        loss = generator_loss(generator, seeded_discriminator("ratlip"), towers[1], *inputs)
    agree(loss, RECORDED["ratlip_g_loss"])


def test_discriminator_phase():
    for name, value in discriminator_phase(*seeded_pairs()).items():
        agree(excerpt(value), RECORDED[f"d_phase/{name}"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:recurrence='batch_as_time'")
def test_generator_loss_and_gradients(towers, family):
    name, generator = family
    inputs = (RECORDED[key].double() for key in ("noise", "text_embeds"))
    # Copies: float64, training mode and moved BatchNorm statistics must not reach the other tests.
    generator, vision = (copy.deepcopy(m).double() for m in (generator, towers[1]))
    loss = generator_loss(generator.train(), seeded_discriminator(name).double(), vision, *inputs)
    agree(loss, RECORDED[f"{name}_g_loss"])
    loss.backward()
    parameters = dict(generator.named_parameters())
    for ours, theirs in generator_key_map(generator).items():
        reference = RECORDED.get(f"{name}_g_grad/{theirs}")
        if reference is not None:
            gradient = parameters[ours].grad
            agree(excerpt(gradient[:8] if theirs == "fc_code.weight" else gradient), reference)


@pytest.mark.slow
def test_golden_frozen_tower(towers, golden):
    text_encoder, image_encoder = towers
    with torch.no_grad():
        agree(text_encoder(input_ids=golden["token_ids"]).text_embeds, golden["sentence_embeds"])
        features, embeds = image_features_and_embeds(image_encoder, golden["image"], clip_input="released")
        mapped = prompted_tower(image_encoder, golden["mapper_grid"], golden["mapper_prompts"], range(1, 9))
    agree(features, golden["image_features"])
    agree(embeds, golden["image_embeds"])
    agree(mapped, golden["mapper_output"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:recurrence='batch_as_time'")
def test_golden_images(towers, family, golden):
    name, generator = family
    noise, text = golden["noise"], golden["text_embeds"]
    with torch.no_grad():
        alone = [generator(noise[i : i + 1], text[i : i + 1], towers[1]).sample for i in range(3)]
        agree(torch.cat(alone), golden[f"{name}_images_each_alone"])
        agree(generator(noise, text, towers[1]).sample, golden[f"{name}_images_one_batch"])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_golden_discriminator_phase(golden, dtype):
    inputs = (golden[name].to(dtype) for name in ("image_features", "fake_features", "pair_text"))
    for name, value in discriminator_phase(*inputs).items():
        if dtype == torch.float64 or not name.startswith("d_grad"):
            agree(value, golden[name])
