"""What diffusers and huggingface_hub do not do for us: older spellings, a card's check, portable configurations."""

import json

import diffusers
from huggingface_hub import ModelCard, constants
from huggingface_hub.utils import HfHubHTTPError, get_session, hf_raise_for_status


def for_diffusers(options: dict) -> dict:
    """Keywords of a loading call as the installed diffusers reads them: before 0.40 `dtype` was only `torch_dtype`.

    Those versions ignore `dtype` with a warning and load float32.
    """
    release = tuple(int(part) for part in diffusers.__version__.split(".")[:2])
    if release >= (0, 40):
        return options
    others = {name: value for name, value in options.items() if name != "dtype"}
    return others if options.get("dtype") is None else {**others, "torch_dtype": options["dtype"]}


def validate_card(card: ModelCard) -> None:
    """Let the Hub check a card's metadata: before huggingface_hub 2.4 the card itself asks huggingface.co, also where
    HF_ENDPOINT names another Hub. Raises ValueError with what the Hub says of metadata that it refuses, and
    HfHubHTTPError when it cannot be asked."""
    body = {"repoType": card.repo_type, "content": str(card)}
    url = f"{constants.ENDPOINT}/api/validate-yaml"
    response = get_session().post(url, json=body, headers={"Accept": "text/plain"})
    try:
        hf_raise_for_status(response)
    except HfHubHTTPError as error:
        raise ValueError(response.text) if response.status_code == 400 else error from None


class PortableConfig:
    """Mixin for diffusers' `ConfigMixin`, to stand before it among the bases: diffusers would save the folder that a
    model was loaded from, and a push would publish it."""

    def to_json_string(self) -> str:
        """The configuration as it is saved, without the place that it was loaded from."""
        config = json.loads(super().to_json_string())  # type: ignore[misc]  # ConfigMixin's
        config.pop("_name_or_path", None)
        return json.dumps(config, indent=2, sort_keys=True) + "\n"

    @classmethod
    def extract_init_dict(cls, config_dict, **kwargs):
        """As in diffusers, which would warn of the entry by which its `AutoModel` finds the code of a repository."""
        return super().extract_init_dict({k: v for k, v in config_dict.items() if k != "auto_map"}, **kwargs)
