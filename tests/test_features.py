"""The feature extractors: their layers and preprocessing against the networks themselves, and what they refuse.
No published weights are at hand: networks are small and random, Inception has weights from a formula."""

import functools
import hashlib
import math

import pytest
import torch
import torch.nn.functional as F
from transformers import Dinov2Config, Dinov2Model

from ratlip_hf import bundled
from ratlip_hf.cli.main import main
from ratlip_hf.evaluation import inception
from ratlip_hf.evaluation.features import CLIPFeatures, DINOv2Features
from ratlip_hf.evaluation.inception import WEIGHTS_NAME, InceptionFeatures, InceptionNetwork, resize_like_tensorflow1
from ratlip_hf.synthetic_birds.judge import BirdJudge, BirdJudgeFeatures
from ratlip_hf.utils.files import file_sha256
from ratlip_hf.utils.tensors import weights_sha256


def random_images(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="module")
def dino() -> Dinov2Model:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 224, "patch_size": 14}
    return Dinov2Model(Dinov2Config(**sizes, mlp_ratio=1)).eval()


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """Weights for every name of torch-fidelity's file, from a formula that needs no random generator."""
    weights = {}
    for number, (name, value) in enumerate(sorted(InceptionNetwork().state_dict().items())):
        if name.endswith("num_batches_tracked"):
            continue
        angles = torch.arange(value.numel(), dtype=torch.float64).square().remainder(10007) * (1 + 0.1 * number)
        waves = angles.sin().reshape(value.shape)
        if value.ndim > 1:
            waves = 2 * waves / value[0].numel() ** 0.5
        elif name.endswith(("running_var", "bn.weight")):
            waves = 1 + waves / 4
        else:
            waves = waves / 5
        weights[name] = waves.float()
    return weights


@pytest.fixture(scope="module")
def weight_file(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / WEIGHTS_NAME
    torch.save(weights, path)
    return path


# All extractors


@pytest.fixture(params=["clip", "dino", "judge"])
def extractor(request, small_clip, dino):
    if request.param == "clip":
        return CLIPFeatures(small_clip.image_encoder)
    return DINOv2Features(dino) if request.param == "dino" else BirdJudgeFeatures.from_pretrained()


def test_features_are_vectors_of_one_image_each(extractor):
    images = random_images(3, 3, 64, 64)
    features = extractor(images)
    assert features.shape == (3, extractor.dim) and features.dtype == torch.float32
    assert not features.requires_grad and not extractor.network.training
    torch.testing.assert_close(extractor(images[1:2])[0], features[1], rtol=1e-4, atol=1e-5)
    assert (features[0] - features[1]).abs().max() > 1e-3
    described = extractor.describe()
    assert described["dim"] == extractor.dim and described["weights_sha256"] == weights_sha256(extractor.network)
    assert described["features"] == extractor.name and described["preprocessing"]
    assert described["dtype"] == "float32"
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(extractor(images), features)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 3, 64, 64, dtype=torch.uint8), "floats in"),
        (torch.zeros(3, 64, 64), "must be"),
        (torch.zeros(2, 1, 64, 64), "must be"),
        (torch.zeros(0, 3, 64, 64), "must be"),
        (torch.full((1, 3, 64, 64), 1.5), "clamp"),
        (torch.full((1, 3, 64, 64), math.nan), "must lie in"),
    ],
)
def test_images_of_another_kind_are_refused(extractor, images, message):
    with pytest.raises(ValueError, match=message):
        extractor(images)


def test_the_hash_is_that_of_the_values(dino):
    before = weights_sha256(dino)
    assert before == DINOv2Features(dino).describe()["weights_sha256"] and len(before) == 64
    changed = Dinov2Model(dino.config)
    changed.load_state_dict(dino.state_dict())
    assert weights_sha256(changed) == before
    changed.layernorm.bias.data[0] += 1e-3
    assert weights_sha256(changed) != before


# CLIP, DINOv2, judges


def test_clip_features_are_the_projected_embeddings(small_clip, clip_dir):
    images = random_images(2, 3, 32, 32)
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    pixels = ((images + 1) / 2 - mean[:, None, None]) / std[:, None, None]
    with torch.no_grad():
        expected = small_clip.image_encoder(pixels).image_embeds
    loaded = CLIPFeatures.from_pretrained(clip_dir)
    for extractor in (CLIPFeatures(small_clip.image_encoder), loaded):
        torch.testing.assert_close(extractor(images), expected, rtol=1e-4, atol=1e-5)
    assert loaded.name == f"clip:{clip_dir}"
    assert CLIPFeatures.from_pretrained("synthetic-birds")(images).shape[0] == 2


def test_dino_features_are_the_class_token_of_normalised_images(dino, tmp_path):
    images = random_images(2, 3, 48, 40)
    pixels = F.interpolate((images + 1) / 2, (224, 224), mode="bicubic", antialias=True)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        expected = dino((pixels - mean[:, None, None]) / std[:, None, None]).pooler_output
    dino.save_pretrained(tmp_path)
    torch.testing.assert_close(DINOv2Features.from_pretrained(tmp_path)(images), expected, rtol=1e-4, atol=1e-5)


def test_a_dino_that_is_missing_or_incomplete_is_refused(dino, tmp_path):
    with pytest.raises(ValueError, match="no DINOv2 could be loaded"):
        DINOv2Features.from_pretrained(tmp_path / "nothing")
    weights = dino.state_dict()
    del weights["layernorm.bias"]
    dino.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(ValueError, match=r"lacks 1 weight.*layernorm\.bias"):
        DINOv2Features.from_pretrained(tmp_path)


def test_judge_features_are_what_the_last_layer_reads():
    images = random_images(2, 3, 64, 64)
    for folder in bundled.judge_dirs():
        extractor, judge = BirdJudgeFeatures.from_pretrained(folder), BirdJudge.from_pretrained(folder)
        logits = F.linear(extractor(images), judge.head.weight, judge.head.bias)
        torch.testing.assert_close(logits, torch.cat(judge(images), dim=1), rtol=1e-4, atol=1e-4)
        assert extractor.name == f"bird-judge:{folder.name}"
    with pytest.raises(ValueError, match="a multiple of 64"):
        extractor(random_images(2, 3, 32, 32))


# Inception


def test_the_inception_network_has_the_weights_of_the_published_file():
    """Names and shapes as listed from torch-fidelity 0.4.0, without the counters."""
    state = InceptionNetwork().state_dict()
    layout = "\n".join(
        f"{name} {list(value.shape)}" for name, value in sorted(state.items()) if "num_batches_tracked" not in name
    )
    assert len(layout.splitlines()) == 472
    expected = "bd04e829988dd22dd0bbf9e499a87af311ed57c1b4309a9d20a907d8ed4123d4"
    assert hashlib.sha256(layout.encode()).hexdigest() == expected


def test_inception_features_are_those_of_the_published_graph(weight_file):
    """Recorded from torch-fidelity 0.4.0 with the same weights and image."""
    extractor = InceptionFeatures.from_file(weight_file, sha256=file_sha256(weight_file))
    y, x = torch.meshgrid(torch.arange(48), torch.arange(64), indexing="ij")
    image = torch.stack([(3 * x + 5 * y) % 256, (x * y) % 256, (7 * x + 200 - y) % 256])[None]
    features = extractor(image / 127.5 - 1)
    assert features.shape == (1, 2048) and extractor.dim == 2048
    expected = [4.508984, 0.0, 0.895933, 3.487325, 0.001015, 1.690546, 0.097094, 0.051288]
    torch.testing.assert_close(features[0, ::256], torch.tensor(expected), rtol=1e-3, atol=1e-4)
    assert (features.mean().item(), features.std().item()) == pytest.approx((1.0054, 1.3563), rel=1e-3)
    # Less than half a byte's step is what saving an image would lose.
    assert torch.equal(extractor((image / 127.5 - 1 + 0.003).clamp(-1, 1)), features)


def test_released_inception_features_are_neither_rounded_nor_resized_as_by_tensorflow(weight_file):
    extractor = InceptionFeatures.from_file(weight_file, sha256=file_sha256(weight_file), released=True)
    images = random_images(1, 3, 299, 299)
    torch.testing.assert_close(extractor(images), extractor.network(images))
    small = random_images(1, 3, 40, 50)
    resized = F.interpolate(small, (299, 299), mode="bilinear")
    torch.testing.assert_close(extractor(small), extractor.network(resized), rtol=1e-4, atol=1e-5)
    assert not torch.equal(extractor(small), extractor((small * 0.999).clamp(-1, 1)))
    assert extractor.preprocessing != InceptionFeatures(extractor.network).preprocessing


def test_the_resize_puts_pixels_where_tensorflow_1_did():
    """To twice the size: every second pixel is an old one, the last one is repeated."""
    row = torch.tensor([0.0, 4.0, 2.0])
    expected = torch.tensor([0.0, 2.0, 4.0, 3.0, 2.0, 2.0])
    resized = resize_like_tensorflow1(row[:, None].expand(1, 1, 3, 3), 6)[0, 0]
    torch.testing.assert_close(resized, expected[:, None].expand(6, 6))
    torch.testing.assert_close(resize_like_tensorflow1(row.expand(1, 1, 3, 3), 6)[0, 0], expected.expand(6, 6))
    images = random_images(1, 3, 5, 5)
    assert torch.equal(resize_like_tensorflow1(images, 5), images)


def test_a_file_of_other_content_is_not_opened(weight_file, tmp_path):
    with pytest.raises(ValueError, match=r"not the published file: its SHA-256 is .* not 6726825d"):
        InceptionFeatures.from_file(weight_file)
    with pytest.raises(ValueError, match="not the published file"):
        InceptionFeatures.from_file(weight_file, sha256="")
    with pytest.raises(ValueError, match="is no file"):
        InceptionFeatures.from_file(tmp_path / "none.pth")


@pytest.mark.parametrize(
    ("published", "off_by", "code", "expected"),
    [
        (True, 1e-6, 0, ["the published file", "they agree"]),
        (False, 1e-6, 1, ["not the published file, 6726825d", "they agree"]),
        (True, 1e-2, 1, ["the published file", "they do not agree"]),
        (True, None, 1, ["the published file", "features were not compared: pip install torch-fidelity"]),
    ],
)
def test_a_users_file_is_verified(weight_file, monkeypatch, capsys, published, off_by, code, expected):
    """Against features that are ours, off by a share of the largest, in the place of torch-fidelity's."""

    def theirs(path, pixels):
        if off_by is None:
            raise ImportError("No module named 'torch_fidelity'")
        features = InceptionFeatures.from_file(path, file_sha256(path))(pixels / 127.5 - 1)
        return features + off_by * features.abs().max()

    monkeypatch.setattr(inception, "_torch_fidelity_features", theirs)
    monkeypatch.setattr(inception, "verify", functools.partial(inception.verify, count=2))
    if published:
        monkeypatch.setattr(inception, "WEIGHTS_SHA256", file_sha256(weight_file))
    assert main(["evaluate", "--verify_inception", str(weight_file)]) == code
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all(text in line for text, line in zip(expected, lines, strict=True))


@pytest.mark.parametrize("change", ["drop", "add", "cut"])
def test_weights_that_do_not_fit_are_refused(weights, tmp_path, change):
    changed = dict(weights)
    if change == "add":
        changed["fc.scale"] = torch.ones(1)
    else:
        value = changed.pop("fc.bias")
        changed.update({"fc.bias": value[:1000]} if change == "cut" else {})
    torch.save(changed, tmp_path / "file.pth")
    with pytest.raises(ValueError, match=r"does not fit the network: .*fc\."):
        InceptionFeatures.from_file(tmp_path / "file.pth", sha256=file_sha256(tmp_path / "file.pth"))
