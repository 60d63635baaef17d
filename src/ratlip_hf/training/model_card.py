"""The model card of a training run: what was trained, on what, with which CLIP and code.
Owns the text of README.md and the metadata that only a run knows; nothing empty is ever written there."""

import math
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..bundled import NAME
from ..model_card import PROMPT, card_data, use_section
from ..version import __version__
from .config import TrainingConfig

_WIDGETS = 3
_INTRODUCTION = """---
{metadata}
---

# {title}

A text-to-image GAN of the RATLIP family: one forward pass from a sentence and noise to a picture. {origin};
these are the averaged weights of the generator. The discriminator lies in `discriminator/`, the files of the training
run in `training/`.
"""
_TRAINING = """
## Training

{facts}

<details><summary>Configuration</summary>

```json
{config}
```

</details>
"""
_METRICS = """
## Evaluation

| metric | value | protocol |
|---|---|---|
{rows}
"""


def model_card(
    config: TrainingConfig,
    repository: str,
    *,
    commit: str | None = None,
    images: int | None = None,
    clip: Mapping[str, str | None] | None = None,
    prompts: Sequence[str] = (),
    samples: Sequence[str] = (),
    metrics: Sequence[Mapping] = (),
) -> ModelCard:
    """The card of a run; whatever is left out is not spoken of.

    Args:
        config: the run's configuration.
        repository: "user/name", where the pipeline can be loaded from.
        commit: of the code, from [`code_commit`].
        images: number of real images seen.
        clip: what `FrozenCLIP.describe` says.
        prompts: captions; the first ones become the widget's examples.
        samples: paths of sample pictures in the repository, oldest first.
        metrics: records with `name`, `value` and `protocol` (how the value was measured).
    """
    title = repository.split("/")[-1]
    text = _INTRODUCTION.format(
        metadata=_metadata(config, title, clip or {}, prompts, samples, metrics).to_yaml(),
        title=title,
        origin=_origin(config),
    )
    if samples:
        text += f"\n![samples]({samples[-1]})\n"
    text += use_section(repository, prompts[0] if prompts else PROMPT)
    facts = _facts(config, commit, images, clip or {})
    text += _TRAINING.format(facts="\n".join(f"* {fact}" for fact in facts), config=config.to_json().strip())
    if metrics:
        rows = [" | ".join(_cell(record[key]) for key in ("name", "value", "protocol")) for record in metrics]
        text += _METRICS.format(rows="\n".join(f"| {row} |" for row in rows))
    return ModelCard(text)


def _origin(config: TrainingConfig) -> str:
    source = config.pretrained_model_name_or_path
    return (
        f"Fine-tuned from `{Path(source).name if Path(source).is_dir() else source}`"
        if source
        else (f"Preset `{config.preset}`")
    )


def code_commit() -> str | None:
    """Git commit of this package's code, with "-dirty" if it was changed since; None where that cannot be told."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        # An installed package may lie inside a repository of the user's, whose commit would say nothing about it.
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*") or None
    except (OSError, subprocess.SubprocessError):
        return None


def _metadata(
    config: TrainingConfig,
    title: str,
    clip: Mapping[str, str | None],
    prompts: Sequence[str],
    samples: Sequence[str],
    metrics: Sequence[Mapping],
) -> ModelCardData:
    card = card_data(
        license=config.hub_license,
        datasets=[source for source in _data_sources(config) if _is_on_hub(source)],
        base_model=_base_models(config, clip),
        widget=[_widget(prompt, samples) for prompt in prompts[:_WIDGETS]],
    )
    if results := [_result(config, record) for record in metrics if math.isfinite(record["value"])]:
        card.model_name, card.eval_results = title, results
    return card


def _widget(prompt: str, samples: Sequence[str]) -> dict:
    return {"text": prompt, **({"output": {"url": samples[-1]}} if samples else {})}


def _base_models(config: TrainingConfig, clip: Mapping[str, str | None]) -> list[str]:
    # Only what was loaded from the Hub has a revision there.
    sources = [clip["source"]] if clip.get("revision") else []
    if config.pretrained_model_name_or_path and _is_on_hub(config.pretrained_model_name_or_path):
        sources.insert(0, config.pretrained_model_name_or_path)
    return list(dict.fromkeys(sources))


def _data_sources(config: TrainingConfig) -> list[str]:
    return list(config.data_mixture) or [config.dataset_name or config.train_data_dir]


def _is_on_hub(source: str) -> bool:
    """Whether a data set or model, given by a name or a folder, is a repository."""
    if source == NAME or Path(source).exists():
        return False
    try:
        validate_repo_id(source)
    except HFValidationError:
        return False
    return True


def _result(config: TrainingConfig, record: Mapping) -> EvalResult:
    data = " + ".join(source if _is_on_hub(source) else Path(source).name for source in _data_sources(config))
    return EvalResult(
        task_type="text-to-image",
        dataset_type=_slug(data),
        dataset_name=data,
        metric_type=_slug(record["name"]),
        metric_name=record["name"],
        # Numbers of NumPy and PyTorch would not be YAML.
        metric_value=float(record["value"]),
        metric_args={"protocol": record["protocol"]},
    )


def _facts(
    config: TrainingConfig, commit: str | None, images: int | None, clip: Mapping[str, str | None]
) -> list[str]:
    sources = [
        f"[{source}](https://huggingface.co/datasets/{source})" if _is_on_hub(source) else f"`{Path(source).name}`"
        for source in _data_sources(config)
    ]
    facts = [f"Data: {', '.join(sources)}"]
    if images is not None:
        facts.append(f"Real images seen: {images:,}")
    if clip:
        if clip["revision"]:
            source = f"`{clip['source']}`, revision `{clip['revision']}`"
        else:
            source = f"`{Path(config.clip_source).name}`"
        facts.append(f"Frozen CLIP: {source}, SHA-256 of its weights `{clip['weights_sha256']}`")
    facts.append(f"Code: ratlip_hf {__version__}" + (f", commit `{commit}`" if commit else ""))
    return facts


def _slug(text: str) -> str:
    return re.sub(r"[^\w./-]+", "_", text.lower()).strip("_")


def _cell(value: str | float) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(text.replace("|", "\\|").split())
