"""Publishing and loading through the Hub's HTTP protocol, against a local server and from a fresh interpreter.
One does everything, since its start takes the time; the tests read what it wrote down and left in its cache."""

import json
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard
from transformers import CLIPModel

from hub_server import hub_environment
from ratlip_hf import RATLIPDiscriminator, RATLIPGenerator, RATLIPPipeline
from ratlip_hf.clip import FrozenCLIP
from ratlip_hf.utils.tensors import weights_sha256
from training_toys import DISCRIMINATOR

PROMPT = "a red bird with a blue crown"
DRAWING = """
    import json
    import sys
    from pathlib import Path

    import numpy as np
    import torch
    from diffusers import DiffusionPipeline

    from ratlip_hf import RATLIPDiscriminator, RATLIPGenerator, RATLIPPipeline
    from ratlip_hf.utils.compat import for_diffusers
    from ratlip_hf.clip import load_clip
    from ratlip_hf.utils.tensors import weights_sha256

    def generate(pipe):
        options = {"output_type": "np", "return_dict": False}
        return pipe(sys.argv[1], generator=torch.Generator().manual_seed(0), **options)[0]

    def write(report, images):
        np.savez(sys.argv[2] + ".npz", **images)
        Path(sys.argv[2] + ".json").write_text(json.dumps(report))

    HALF = {"variant": "fp16", "dtype": torch.float16}
"""
ONLINE = """
    from huggingface_hub import upload_folder

    folder, discriminator, first_clip, other_cache = sys.argv[3:]
    local = RATLIPPipeline.from_pretrained(folder)
    pushed = local.push_to_hub("ada/birds")
    uploaded = upload_folder(repo_id="ada/birds", folder_path=folder, path_in_repo="copy")
    upload_folder(repo_id="ada/birds", folder_path=discriminator, path_in_repo="discriminator")
    pipelines = {"diffusers' class": DiffusionPipeline.from_pretrained("ada/birds")}
    half = RATLIPPipeline.from_pretrained(folder, dtype=torch.float16).push_to_hub("ada/birds", variant="fp16")
    generator = RATLIPGenerator.from_pretrained("ada/birds", subfolder="generator")
    pipelines |= {
        "own class": RATLIPPipeline.from_pretrained("ada/birds"),
        "generator alone": RATLIPPipeline(**{**local.components, "generator": generator}),
        "clip repository": RATLIPPipeline.from_clip("ada/clip", generator),
        "half precision": RATLIPPipeline.from_pretrained("ada/birds", **HALF, cache_dir=other_cache),
        "half precision, diffusers' class": DiffusionPipeline.from_pretrained("ada/birds", **for_diffusers(HALF)),
        "half precision, older spelling": RATLIPPipeline.from_pretrained("ada/birds", torch_dtype=torch.float16),
        "stored in half precision": RATLIPPipeline.from_pretrained("ada/birds", variant="fp16"),
    }
    torch.nn.init.zeros_(local.generator.to_rgb.weight)
    local.push_to_hub("ada/birds")
    old = RATLIPGenerator.from_pretrained("ada/birds", subfolder="generator", revision=pushed.oid)
    pipelines |= {
        "pinned revision": RATLIPPipeline.from_pretrained("ada/birds", revision=pushed.oid),
        "generator of a pinned revision": RATLIPPipeline(**{**local.components, "generator": old}),
        "last push": RATLIPPipeline.from_pretrained("ada/birds"),
    }
    discriminator = RATLIPDiscriminator.from_pretrained("ada/birds", subfolder="discriminator")
    report = {
        "pushed": pushed.oid,
        "uploaded": uploaded.oid,
        "half": half.oid,
        "dtypes": {name: str(pipe.generator.dtype) for name, pipe in pipelines.items()},
        "fetched": [str(path) for path in Path(other_cache).rglob("*.safetensors")],
        "discriminator": weights_sha256(discriminator),
        "latest_clip": load_clip("ada/clip").describe(),
        "first_clip_record": load_clip("ada/clip", revision=first_clip).describe(),
    }
    write(report, {name: generate(pipe) for name, pipe in pipelines.items()})
"""


def results(prefix: Path) -> SimpleNamespace:
    """What a script has written."""
    report = json.loads(Path(f"{prefix}.json").read_text())
    return SimpleNamespace(images=dict(np.load(f"{prefix}.npz")), **report)


@pytest.fixture(scope="module")
def place(small_clip, clip_model, make_generator, tmp_path_factory) -> Path:
    """A folder with a pipeline, a discriminator and a CLIP in it."""
    folder = tmp_path_factory.mktemp("hub")
    pipe = RATLIPPipeline(small_clip.tokenizer, small_clip.text_encoder, small_clip.image_encoder, make_generator())
    pipe.save_pretrained(folder / "pipeline")
    RATLIPDiscriminator(**DISCRIMINATOR).save_pretrained(folder / "discriminator")
    small_clip.tokenizer.save_pretrained(folder / "clip")
    return folder


@pytest.fixture(scope="module")
def session(hub, clip_model, run_python, place) -> SimpleNamespace:
    """A user's session: push a pipeline in two precisions, then load it and a CLIP with two revisions in every way."""
    CLIPModel(clip_model.config).save_pretrained(place / "clip")
    first_clip = hub.store.publish(place / "clip", "ada/clip")
    clip_model.save_pretrained(place / "clip")
    hub.store.publish(place / "clip", "ada/clip")

    arguments = (PROMPT, place / "online", place / "pipeline", place / "discriminator", first_clip, place / "other")
    run_python(textwrap.dedent(DRAWING + ONLINE), *arguments, env=hub_environment(hub.url, place / "home"))
    pipe = RATLIPPipeline.from_pretrained(place / "pipeline")
    expected = pipe(PROMPT, generator=torch.Generator().manual_seed(0), output_type="np").images
    return SimpleNamespace(expected=expected, first_clip=first_clip, **vars(results(place / "online")))


@pytest.mark.parametrize(
    "loaded_as",
    [
        "own class",
        "diffusers' class",
        "pinned revision",
        "generator alone",
        "generator of a pinned revision",
        "clip repository",
    ],
)
def test_loaded_from_the_hub_it_generates_the_same_image(session, loaded_as):
    assert np.allclose(session.images[loaded_as], session.expected, rtol=0, atol=1e-5)
    assert not np.allclose(session.images[loaded_as], session.images["last push"], rtol=0, atol=1e-2)


@pytest.mark.parametrize(
    ("loaded_as", "dtype"),
    [
        ("half precision", "torch.float16"),
        ("half precision, diffusers' class", "torch.float16"),
        ("half precision, older spelling", "torch.float16"),
        ("stored in half precision", "torch.float32"),  # a variant names files, dtype= says what they become
    ],
)
def test_half_precision(session, loaded_as, dtype):
    assert session.dtypes[loaded_as] == dtype
    assert np.allclose(session.images[loaded_as], session.expected, rtol=0, atol=2e-2)
    assert not np.array_equal(session.images[loaded_as], session.expected)


def test_a_variant_is_fetched_instead_of_the_full_weights(session):
    assert session.fetched
    for part in ("generator", "text_encoder", "image_encoder"):
        names = [Path(path).name for path in session.fetched if f"{session.half}/{part}/" in path]
        assert len(names) == 1 and names[0].endswith(".fp16.safetensors"), names


def test_discriminator_of_a_repository(session, place):
    expected = weights_sha256(RATLIPDiscriminator.from_pretrained(place / "discriminator"))
    assert session.discriminator == expected


def test_second_load_needs_no_network(session, place):
    """This process is offline, like all tests, and reads the cache of the session."""
    cached = {"cache_dir": place / "home" / "hub"}
    pinned = {**cached, "revision": session.pushed}
    generator = RATLIPGenerator.from_pretrained("ada/birds", subfolder="generator", **pinned)
    pipelines = {
        "pinned revision": RATLIPPipeline.from_pretrained("ada/birds", **pinned),
        "diffusers' class": DiffusionPipeline.from_pretrained("ada/birds", **pinned),
        "last push": RATLIPPipeline.from_pretrained("ada/birds", **cached),
        "clip repository": RATLIPPipeline.from_clip("ada/clip", generator, **cached),
    }
    for name, pipe in pipelines.items():
        image = pipe(PROMPT, generator=torch.Generator().manual_seed(0), output_type="np").images
        assert np.allclose(image, session.images[name], rtol=0, atol=1e-6), name
    discriminator = RATLIPDiscriminator.from_pretrained("ada/birds", subfolder="discriminator", **cached)
    assert weights_sha256(discriminator) == session.discriminator


def test_pushed_repository_is_complete(hub, session):
    repository = hub.store.get("models", "ada/birds")
    files = repository.snapshots[session.pushed]
    weights = {path: content for path, content in files.items() if path.endswith(".safetensors")}
    assert weights.keys() == {
        "generator/diffusion_pytorch_model.safetensors",
        "image_encoder/model.safetensors",
        "text_encoder/model.safetensors",
    }
    assert set(weights.values()) <= set(hub.store.large_files.values())
    assert {"model_index.json", "README.md", "tokenizer/tokenizer.json", "generator/config.json"} <= files.keys()
    assert session.uploaded != session.pushed
    assert "copy/model_index.json" in repository.snapshots[session.uploaded]


def test_pushed_repository_has_a_card_of_ours(hub, session):
    repository = hub.store.get("models", "ada/birds")
    card = ModelCard(repository.snapshots[session.pushed]["README.md"].decode())
    assert card.data.library_name == "ratlip_hf"
    assert 'RATLIPPipeline.from_pretrained("ada/birds")' in card.text
    assert "automatically generated" not in card.text


def test_nothing_pushed_names_a_folder_of_this_machine(hub, session, place):
    repository = hub.store.get("models", "ada/birds")
    assert not [
        path for path, content in repository.snapshots[repository.head].items() if str(place).encode() in content
    ]


def test_revision_of_the_clip_is_recorded(hub, session):
    latest, first = session.latest_clip, session.first_clip_record
    assert (latest["source"], latest["revision"]) == ("ada/clip", hub.store.get("models", "ada/clip").head)
    assert (first["source"], first["revision"]) == ("ada/clip", session.first_clip)
    assert latest["weights_sha256"] != first["weights_sha256"]


def test_clip_from_the_hub_has_the_published_weights(session, small_clip: FrozenCLIP):
    assert session.latest_clip["weights_sha256"] == small_clip.describe()["weights_sha256"]
