"""What all model cards of this package have in common, and the card of a pipeline of which nothing else is known.
Owns metadata, the sections about use, and what becomes of a card that is there already."""

import json

from diffusers import ModelMixin
from huggingface_hub import ModelCard, ModelCardData

from .version import __version__

PROMPT = "a small bird with red wings"
_GENERIC = "model card has been automatically generated"  # what diffusers writes for every pipeline
_PIPELINE = """---
{metadata}
---

# {title}

A text-to-image GAN of the RATLIP family: one forward pass from a sentence and noise to an image.
{use}
## Model

{facts}

This card was written from the files alone: what the model was trained on is not known to it.
"""
_USE = """
## Use

```python
import torch
from ratlip_hf import RATLIPPipeline

pipe = RATLIPPipeline.from_pretrained("{repository}")
images = pipe({prompt}, num_images_per_prompt=4, generator=torch.Generator().manual_seed(0)).images
images[0].save("image.png")
```
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


def use_section(repository: str, prompt: str = PROMPT) -> str:
    """Markdown: how to draw `prompt` with the pipeline at `repository`."""
    return _USE.format(repository=repository, prompt=json.dumps(prompt, ensure_ascii=False))


def pipeline_card(components: dict, repository: str, known: ModelCardData | None = None) -> ModelCard:
    """The card of a pipeline of which its components alone are known.

    Args:
        components: of the pipeline; those that are None are not spoken of.
        repository: "user/name", where it can be loaded from.
        known: metadata to keep, for instance a license.
    """
    data = card_data()
    for name, value in (known.to_dict() if known else {}).items():
        if name != "library_name":
            data[name] = value
    title = repository.split("/")[-1]
    facts = "\n".join(f"* {fact}" for fact in _facts(components))
    return ModelCard(_PIPELINE.format(metadata=data.to_yaml(), title=title, use=use_section(repository), facts=facts))


def own_card(found: ModelCard, components: dict, repository: str) -> ModelCard:
    """`found` if somebody wrote it, else [`pipeline_card`] with the metadata of `found`.

    Nobody wrote a card without text, which the Hub's site makes, or the generic one of diffusers.
    """
    if found.text.strip() and _GENERIC not in found.text:
        return found
    return pipeline_card(components, repository, found.data)


def _facts(components: dict) -> list[str]:
    facts = []
    if (generator := components.get("generator")) is not None:
        facts.append(_generator_fact(generator))
    if (tower := components.get("image_encoder")) is not None:
        size = f"width {tower.config.hidden_size}, {tower.config.num_hidden_layers} layers"
        facts.append(
            f"Frozen CLIP, in this repository: image tower of {size}, patches of {tower.config.patch_size} px"
        )
    return [*facts, f"Written by ratlip_hf {__version__}"]


def _generator_fact(generator: ModelMixin) -> str:
    config = generator.config
    fusion = f"recurrence {config.recurrence}" if config.fusion == "rat" else "no recurrence"
    return (
        f"Generator: {config.sample_size} px, {generator.num_parameters() / 1e6:.1f} M parameters, noise "
        f"{config.noise_dim}, {fusion}"
    )
