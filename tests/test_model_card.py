"""The card that goes with a pushed pipeline: ours where nobody wrote one, and never in place of somebody's own.
In this process against the local Hub; the cards of training runs are in `test_publishing`."""

import pytest
from huggingface_hub import HfApi, ModelCard

from ratlip_hf import RATLIPPipeline
from ratlip_hf.utils.compat import validate_card

GENERIC = "This is the model card of a 🧨 diffusers model that has been pushed on the Hub. This model card has been "
GENERIC += "automatically generated."


def pushed_card(hub, name: str) -> ModelCard:
    repository = hub.store.get("models", name)
    return ModelCard(repository.snapshots[repository.head]["README.md"].decode())


def write_card(name: str, text: str) -> None:
    api = HfApi()
    api.create_repo(name, exist_ok=True)
    api.upload_file(repo_id=name, path_in_repo="README.md", path_or_fileobj=text.encode())


@pytest.fixture(params=["push_to_hub", "save_pretrained"])
def push(request, pipe, tmp_path):
    """Publishes the pipeline under a name, in each of the two ways that diffusers has."""

    def run(name: str) -> None:
        if request.param == "push_to_hub":
            pipe.push_to_hub(name)
        else:
            pipe.save_pretrained(str(tmp_path / "saved"), push_to_hub=True, repo_id=name)

    return run


def test_the_card_describes_the_pipeline_and_is_valid(online, push):
    push("ada/new-birds")
    card = pushed_card(online, "ada/new-birds")
    validate_card(card)
    assert card.data.to_dict() == {
        "language": ["en"],
        "library_name": "ratlip_hf",
        "pipeline_tag": "text-to-image",
        "tags": ["text-to-image", "gan", "clip", "ratlip"],
    }
    assert "# new-birds" in card.text and "automatically generated" not in card.text
    for fact in ("32 px", "noise 100", "recurrence across_layers", "width 32, 3 layers", "do not say"):
        assert fact in card.text, fact
    program = card.text.split("```python\n")[1].split("```")[0]
    assert 'from_pretrained("ada/new-birds")' in program
    compile(program, "README.md", "exec")


def test_somebodys_card_stays(online, push):
    write_card("ada/written", "---\nlicense: mit\nlibrary_name: mine\n---\n# Birds\n\nDrawn with love.\n")
    push("ada/written")
    card = pushed_card(online, "ada/written")
    assert "Drawn with love." in card.text and "RATLIPPipeline" not in card.text
    assert (card.data.license, card.data.library_name) == ("mit", "mine")


@pytest.mark.parametrize("text", ["", f"# Model Card for Model ID\n\n{GENERIC}\n"])
def test_a_card_that_nobody_wrote_is_replaced_but_its_license_stays(online, push, text):
    name = f"ada/unwritten-{len(text)}"
    write_card(name, f"---\nlicense: cc-by-4.0\nlibrary_name: diffusers\n---\n{text}")
    push(name)
    card = pushed_card(online, name)
    assert (card.data.license, card.data.library_name) == ("cc-by-4.0", "ratlip_hf")
    assert "RATLIPPipeline" in card.text and "automatically generated" not in card.text


def test_nothing_is_said_of_absent_parts(online, pipe):
    RATLIPPipeline(None, None, None, pipe.generator).push_to_hub("ada/half")
    text = pushed_card(online, "ada/half").text
    assert "CLIP, in this repository" not in text and "None" not in text and "32 px" in text


def test_a_push_into_a_subfolder_leaves_the_card_alone(online, pipe):
    pipe.push_to_hub("ada/below", subfolder="first")
    repository = online.store.get("models", "ada/below")
    assert not [path for path in repository.snapshots[repository.head] if path.endswith("README.md")]
