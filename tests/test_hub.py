"""Publishing and loading through the Hub's HTTP protocol, against a local server and from a fresh interpreter.
One interpreter does everything, since its start is what takes the time; the tests read what it wrote down."""

import json
import textwrap
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import CLIPModel

from hub_server import hub_environment
from ratlip_hf import RATLIPPipeline
from ratlip_hf.frozen_clip import FrozenCLIP

PROMPT = "a red bird with a blue crown"
SCRIPT = """
    import json
    import sys

    import numpy as np
    import torch
    from diffusers import DiffusionPipeline
    from huggingface_hub import upload_folder

    import ratlip_hf
    from ratlip_hf import RATLIPGenerator, RATLIPPipeline
    from ratlip_hf.frozen_clip import load_clip

    folder, first_clip, prompt, pictures_file, report_file = sys.argv[1:]
    local = RATLIPPipeline.from_pretrained(folder)
    pushed = local.push_to_hub("ada/birds")
    uploaded = upload_folder(repo_id="ada/birds", folder_path=folder, path_in_repo="copy")

    generator = RATLIPGenerator.from_pretrained("ada/birds", subfolder="generator")
    pipelines = {
        "own class": RATLIPPipeline.from_pretrained("ada/birds"),
        "diffusers' class": DiffusionPipeline.from_pretrained("ada/birds"),
        "pinned revision": RATLIPPipeline.from_pretrained("ada/birds", revision=pushed.oid),
        "generator alone": RATLIPPipeline(**{**local.components, "generator": generator}),
        "clip repository": RATLIPPipeline.from_clip("ada/clip", generator),
    }
    options = {"output_type": "np", "return_dict": False}
    np.savez(
        pictures_file,
        **{
            name: pipe(prompt, generator=torch.Generator().manual_seed(0), **options)[0]
            for name, pipe in pipelines.items()
        },
    )
    report = {
        "pushed": pushed.oid,
        "uploaded": uploaded.oid,
        "latest_clip": load_clip("ada/clip").describe(),
        "first_clip_record": load_clip("ada/clip", revision=first_clip).describe(),
    }
    with open(report_file, "w") as file:
        json.dump(report, file)
"""


@pytest.fixture(scope="module")
def session(hub, clip_model, small_clip, make_generator, run_python, tmp_path_factory) -> SimpleNamespace:
    """A user's session: push a pipeline, then load it and a CLIP with two revisions in every way."""
    folder = tmp_path_factory.mktemp("hub")
    pipe = RATLIPPipeline(small_clip.tokenizer, small_clip.text_encoder, small_clip.image_encoder, make_generator())
    pipe.save_pretrained(folder / "pipeline")

    small_clip.tokenizer.save_pretrained(folder / "clip")
    CLIPModel(clip_model.config).save_pretrained(folder / "clip")
    first_clip = hub.store.publish(folder / "clip", "ada/clip")
    clip_model.save_pretrained(folder / "clip")
    hub.store.publish(folder / "clip", "ada/clip")

    arguments = (folder / "pipeline", first_clip, PROMPT, folder / "pictures.npz", folder / "report.json")
    run_python(textwrap.dedent(SCRIPT), *arguments, env=hub_environment(hub.url, folder / "home"))
    return SimpleNamespace(
        expected=pipe(PROMPT, generator=torch.Generator().manual_seed(0), output_type="np").images,
        pictures=dict(np.load(folder / "pictures.npz")),
        first_clip=first_clip,
        **json.loads((folder / "report.json").read_text()),
    )


@pytest.mark.parametrize(
    "loaded_as", ["own class", "diffusers' class", "pinned revision", "generator alone", "clip repository"]
)
def test_loaded_from_the_hub_it_draws_the_same_picture(session, loaded_as):
    assert np.allclose(session.pictures[loaded_as], session.expected, rtol=0, atol=1e-5)


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
    assert session.uploaded == repository.head != session.pushed
    assert "copy/model_index.json" in repository.snapshots[repository.head]


def test_revision_of_the_clip_is_recorded(hub, session):
    latest, first = session.latest_clip, session.first_clip_record
    assert (latest["source"], latest["revision"]) == ("ada/clip", hub.store.get("models", "ada/clip").head)
    assert (first["source"], first["revision"]) == ("ada/clip", session.first_clip)
    assert latest["weights_sha256"] != first["weights_sha256"]


def test_clip_from_the_hub_has_the_published_weights(session, small_clip: FrozenCLIP):
    assert session.latest_clip["weights_sha256"] == small_clip.describe()["weights_sha256"]
