"""What all model cards of this package have in common, and the card of a pipeline of which nothing else is known."""

import json
from collections.abc import Iterable, Iterator

from huggingface_hub import ModelCard, ModelCardData

from .version import __version__

PROMPT = "a small bird with red wings"
_GENERIC = "model card has been automatically generated"  # what diffusers writes for every pipeline
_CARD = """---
{metadata}
---

# {title}

A text-to-image GAN of the RATLIP family: one forward pass from a prompt and noise to an image.{more}

## Use

```python
import torch
from ratlip_hf import RATLIPPipeline

pipe = RATLIPPipeline.from_pretrained("{repository}")
images = pipe({prompt}, num_images_per_prompt=4, generator=torch.Generator().manual_seed(0)).images
images[0].save("image.png")
```
{sections}"""
_NETWORK = """---
{metadata}
---

# {title}

The `{name}` of a text-to-image GAN of the RATLIP family, {millions:.1f} M parameters, by itself: images need a
pipeline with the CLIP that it was trained with.

```python
from ratlip_hf import {name}

network = {name}.from_pretrained("{repository}")
```

{options}
"""
_MODEL = """
## Model

{facts}

This card was written from the files alone: they do not say what the model was trained on.
"""


def card_data(**fields) -> ModelCardData:
    """Metadata with what every card says; `fields` that are empty are left out."""
    common = {
        "language": ["en"],
        "library_name": "ratlip_hf",
        "pipeline_tag": "text-to-image",
        "tags": ["text-to-image", "gan", "clip", "ratlip"],
    }
    return ModelCardData(**common, **{name: value for name, value in fields.items() if value})


def compose(data: ModelCardData, repository: str, sections: str, prompt: str = PROMPT, more: str = "") -> ModelCard:
    """A card: metadata, what it is (and `more` of that), how to generate images for `prompt`, further `sections`.

    `repository` is the "user/name" where the pipeline can be loaded from; all texts are Markdown.
    """
    named = {"repository": repository, "title": repository.split("/")[-1], "metadata": data.to_yaml()}
    quoted = json.dumps(prompt, ensure_ascii=False)
    return ModelCard(_CARD.format(**named, prompt=quoted, more=more, sections=sections))


def listed(facts: Iterable[str]) -> str:
    """A list in Markdown."""
    return "\n".join(f"* {fact}" for fact in facts)


def pipeline_card(components: dict, repository: str, known: ModelCardData | None = None) -> ModelCard:
    """The card of a pipeline of which its components alone are known; metadata that is `known` already stays."""
    data = card_data()
    for name, value in (known.to_dict() if known else {}).items():
        if name != "library_name":
            data[name] = value
    return compose(data, repository, _MODEL.format(facts=listed(_facts(components))))


def network_card(network, found: ModelCard, repository: str) -> ModelCard:
    """The card of a generator or discriminator by itself; `found` if somebody wrote it."""
    if _is_written(found):
        return found
    named = {"repository": repository, "title": repository.split("/")[-1], "name": type(network).__name__}
    millions, config = network.num_parameters() / 1e6, dict(network.config)
    options = listed(f"`{name}`: {value}" for name, value in sorted(config.items()) if not name.startswith("_"))
    return ModelCard(_NETWORK.format(**named, metadata=card_data().to_yaml(), millions=millions, options=options))


def _is_written(card: ModelCard) -> bool:
    """Nobody wrote a card without text, which the Hub's site makes, or the generic one of diffusers."""
    return bool(card.text.strip()) and _GENERIC not in card.text


def own_card(found: ModelCard, components: dict, repository: str) -> ModelCard:
    """`found` if somebody wrote it, else [`pipeline_card`] with the metadata of `found`."""
    if _is_written(found):
        return found
    return pipeline_card(components, repository, found.data)


def _facts(components: dict) -> Iterator[str]:
    if (generator := components.get("generator")) is not None:
        config, millions = generator.config, generator.num_parameters() / 1e6
        fusion = f"recurrence {config.recurrence}" if config.fusion == "rat" else "no recurrence"
        yield f"Generator: {config.sample_size} px, {millions:.1f} M parameters, noise {config.noise_dim}, {fusion}"
    if (tower := components.get("image_encoder")) is not None:
        size = f"width {tower.config.hidden_size}, {tower.config.num_hidden_layers} layers"
        yield f"Frozen CLIP, in this repository: image tower of {size}, patches of {tower.config.patch_size} px"
    yield f"Written by ratlip_hf {__version__}"
