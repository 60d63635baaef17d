"""Converted checkpoints of full size give the images of the original RATLIP and GALIP programs, to 1e-4.
Recorded excerpts are always compared; the complete golden file, and files of its own writer, where it is at hand."""

import runpy

import pytest
import torch
from recipe import excerpt, seeded_discriminator, seeded_generator, seeded_towers
from safetensors.torch import load_file

from ratlip_hf.clip import FrozenCLIP
from ratlip_hf.convert.folder import original_networks, save_conversion, save_original
from ratlip_hf.convert.original import convert_original
from ratlip_hf.pipeline import RATLIPPipeline
from test_parity import FAMILIES, GOLDEN, RECORDED, agree
from train_clip import build_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def clip():
    return FrozenCLIP(build_tokenizer(["a red bird"]), *seeded_towers())


@pytest.fixture(scope="module")
def golden():
    if not GOLDEN.exists():
        pytest.skip("the golden file is not here")
    return load_file(GOLDEN)


def generate(generator, clip, noise, text):
    with torch.no_grad():
        return generator(noise, text, clip.image_encoder).sample


@pytest.mark.parametrize("family", FAMILIES)
def test_recorded_images(family, clip, tmp_path):
    """The file's names and weights follow from the recipe; its images were recorded from the original programs."""
    generator, discriminator = seeded_generator(family), seeded_discriminator(family)
    file = tmp_path / "original.pth"
    torch.save({"model": original_networks(generator, discriminator, clip.image_encoder), "epoch": 7}, file)
    converted = convert_original(file, clip)
    assert (converted.family, converted.tower_compared) == (family, True)
    images = generate(converted.generator, clip, RECORDED["noise"][:2], RECORDED["text_embeds"][:2])
    for index, image in enumerate(images):
        agree(excerpt(image), RECORDED[f"{family}_image_alone_{index}"])


@pytest.mark.parametrize("family", FAMILIES)
def test_golden_images_there_and_back(family, clip, golden, tmp_path):
    file = tmp_path / "original.pth"
    # Run, not imported: importing would leave compiled code next to the golden file.
    runpy.run_path(str(GOLDEN.with_name("seeded_weights.py")))["original_checkpoint"](str(file), family)
    converted = convert_original(file, clip)
    assert converted.family == family and converted.source.ignored == ["epoch"]
    assert converted.assumed["sample_size"] == 224 and not converted.tower_compared
    noise, text = golden["noise"], golden["text_embeds"]
    agree(generate(converted.generator, clip, noise, text), golden[f"{family}_images_each_alone"])
    coupled = convert_original(file, clip, coupled=True).generator
    agree(generate(coupled, clip, noise, text), golden[f"{family}_images_one_batch"])
    with torch.no_grad():
        logits = converted.discriminator(golden["image_features"], golden["pair_text"]).logits
    if family == "ratlip":
        agree(logits, golden["real_logits"])

    save_conversion(converted, tmp_path / "out")
    pipe = RATLIPPipeline.from_pretrained(tmp_path / "out")
    images = pipe(prompt_embeds=text, latents=noise, output_type="pt").images
    agree(images, (golden[f"{family}_images_each_alone"].clamp(-1, 1) + 1) / 2)
    save_original(tmp_path / "out", tmp_path / "again.pth", with_tower=False)
    first, again = (torch.load(path, weights_only=True)["model"] for path in (file, tmp_path / "again.pth"))
    for network, tensors in first.items():
        assert tensors.keys() == again[network].keys()
        for name, value in tensors.items():
            other = again[network][name]
            assert (value.dtype, value.shape) == (other.dtype, other.shape)
            assert value.numpy().tobytes() == other.numpy().tobytes()
