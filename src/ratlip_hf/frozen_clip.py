"""The frozen CLIP as one thing: tokenizer, text tower and image tower, loaded from any place that holds them.
Owns loading, identification and sentence encoding; the towers' inner use is in `models.clip`."""

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import transformers
from safetensors import safe_open
from transformers import (
    CLIPModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
    PreTrainedModel,
)
from transformers.utils import cached_file, extract_commit_hash

from .bundled import resolve
from .utils.fingerprints import weights_sha256

logger = logging.getLogger(__name__)

_HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only")


@dataclass
class FrozenCLIP:
    """Tokenizer and both towers of one CLIP, in eval mode and without gradients.

    `source` is where it was loaded from, `revision` the commit on the Hub (None for a folder or a model in memory).
    """

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModelWithProjection
    image_encoder: CLIPVisionModelWithProjection
    source: str = "memory"
    revision: str | None = None

    def __post_init__(self):
        for tower in (self.text_encoder, self.image_encoder):
            tower.requires_grad_(False).eval()

    def encode(self, captions: list[str]) -> torch.Tensor:
        """Raw projected sentence embeddings [N, D] of the captions, without gradient."""
        with torch.no_grad():
            return encode_text(self.tokenizer, self.text_encoder, captions)

    def describe(self) -> dict[str, str | None]:
        """What a training run records: source, revision, and the SHA-256 of both towers' weights."""
        digest = weights_sha256(self.text_encoder, self.image_encoder)
        return {"source": self.source, "revision": self.revision, "weights_sha256": digest}


def load_clip(source: str | os.PathLike | CLIPModel, tokenizer: CLIPTokenizer | None = None, **kwargs) -> FrozenCLIP:
    """Load a frozen CLIP.

    Args:
        source: a CLIP repository or folder, the folder of a RATLIP pipeline (its CLIP is taken), "synthetic-birds"
            for the bundled one, or a `CLIPModel`, for which `tokenizer` is needed too.
        tokenizer: use this one instead of the tokenizer beside the weights.
        kwargs: passed to transformers, for example `revision=` or `dtype=`.

    Raises:
        ValueError: when nothing loadable lies there; one line.
    """
    if isinstance(source, CLIPModel):
        if tokenizer is None:
            raise ValueError("a CLIPModel brings no tokenizer: pass tokenizer= as well")
        dtype = kwargs.pop("dtype", None) or source.dtype
        if kwargs:
            raise ValueError(f"{', '.join(kwargs)} mean nothing for a CLIPModel that is already loaded")
        return _split(source, tokenizer, dtype)
    source = resolve(source)
    try:
        where = {key: kwargs[key] for key in _HUB_OPTIONS if key in kwargs}
        index = cached_file(source, "model_index.json", _raise_exceptions_for_missing_entries=False, **where)
        folders = ("text_encoder", "image_encoder", "tokenizer") if index else ("", "", "")
        # One commit for all parts, found once: a push in between cannot mix two CLIPs, and the run can be repeated.
        revision = extract_commit_hash(cached_file(source, "config.json", subfolder=folders[1], **where), None)
        if revision is not None:
            kwargs["revision"] = where["revision"] = revision
        text, image = (
            _load_tower(kind, source, folder, kwargs)
            for kind, folder in zip(
                (CLIPTextModelWithProjection, CLIPVisionModelWithProjection), folders, strict=False
            )
        )
        tokenizer = tokenizer or CLIPTokenizer.from_pretrained(source, subfolder=folders[2], **where)
    except OSError as error:
        raise ValueError(f"no CLIP could be loaded from {str(source)!r}: {str(error).splitlines()[0]}") from error
    return FrozenCLIP(tokenizer, text, image, str(source), revision)


def _load_tower(kind: type, source: str | os.PathLike, folder: str, kwargs: dict):
    # A full CLIP holds the other tower too, which transformers would report tensor by tensor.
    with _quiet_transformers():
        tower, info = kind.from_pretrained(source, subfolder=folder, output_loading_info=True, **kwargs)
    _raise_if_missing(info["missing_keys"], source, kind)
    return tower


def refuse_missing_weights(tower: PreTrainedModel, source: str | os.PathLike, folder: str, options: dict) -> None:
    """Raise ValueError if the file that `tower` was loaded from lacks any of its weights.

    transformers only warns and leaves random numbers in their place. `options` are those of the loading call.
    """
    where = {key: options[key] for key in _HUB_OPTIONS if key in options}
    name = "model.safetensors" if not options.get("variant") else f"model.{options['variant']}.safetensors"
    file = cached_file(source, name, subfolder=folder, _raise_exceptions_for_missing_entries=False, **where)
    if file is None:  # another format (shards, pickles), whose completeness the file itself does not tell
        return
    with safe_open(file, "pt") as weights:
        _raise_if_missing(set(tower.state_dict()) - set(weights.keys()), source, type(tower))


def _raise_if_missing(missing: Iterable[str], source: str | os.PathLike, kind: type) -> None:
    if missing := sorted(missing):
        raise ValueError(f"{source} lacks {len(missing)} weight(s) of {kind.__name__}, for example {missing[0]}")


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    verbosity, bars = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        if bars:
            transformers.logging.enable_progress_bar()


def _split(model: CLIPModel, tokenizer: CLIPTokenizer, dtype: torch.dtype) -> FrozenCLIP:
    text = CLIPTextModelWithProjection(model.config.text_config)
    image = CLIPVisionModelWithProjection(model.config.vision_config)
    for tower in (text, image):
        wanted = tower.state_dict().keys()
        tower.load_state_dict({name: value for name, value in model.state_dict().items() if name in wanted})
    return FrozenCLIP(tokenizer, text.to(model.device, dtype), image.to(model.device, dtype))


def encode_text(
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModelWithProjection,
    captions: list[str],
    device: torch.device | None = None,
) -> torch.Tensor:
    """Raw projected sentence embeddings [N, D]: text projection of the end token, not normalised.

    `device` is where the tower runs, if that is not where its weights lie (CPU offload).

    Captions beyond the tokenizer's limit are cut, keeping the end token, with a warning that names the lost words.

    Raises:
        ValueError: when tokenizer and text tower do not belong together.
    """
    config = text_encoder.config
    limit = min(tokenizer.model_max_length, config.max_position_embeddings)
    tokens = tokenizer(captions, padding="max_length", truncation=True, max_length=limit, return_tensors="pt")
    ids = tokens.input_ids
    if int(ids.max()) >= config.vocab_size or not _end_token_is_found(ids, config.eos_token_id):
        # Pooling would silently read position 0 and give every caption the same embedding.
        raise ValueError(
            "the tokenizer does not fit the text encoder: its ids exceed the vocabulary or lack the end token "
            f"{config.eos_token_id}"
        )
    _warn_of_lost_words(tokenizer, captions, limit)
    return text_encoder(input_ids=ids.to(device or text_encoder.device)).text_embeds


def _end_token_is_found(ids: torch.Tensor, eos_token_id: int) -> bool:
    legacy = 2  # transformers then takes the largest id as the end token
    return eos_token_id == legacy or bool((ids == eos_token_id).any(dim=1).all())


def _warn_of_lost_words(tokenizer: CLIPTokenizer, captions: list[str], limit: int) -> None:
    # A token stands for at least one byte, so shorter captions need no second look.
    for caption in (caption for caption in captions if len(caption.encode()) > limit - 2):
        ids = tokenizer(caption, truncation=False, verbose=False).input_ids
        if len(ids) > limit:
            lost = tokenizer.decode(ids[limit - 1 : -1], skip_special_tokens=True).strip()
            logger.warning("the prompt was cut at %d tokens; these words were lost: %s", limit, lost)
