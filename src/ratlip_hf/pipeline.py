"""`RATLIPPipeline`: prompts in, images out, in the way of a `DiffusionPipeline`; inference only.
From the top: the call, edits, embeddings, faster networks, ways to load and publish, checks."""

import os
import warnings
from collections.abc import Callable
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.image_processor import VaeImageProcessor
from huggingface_hub import ModelCard
from transformers import CLIPModel, CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection
from transformers.utils import cached_file

from .clip import DEFAULT_CLIP, FrozenCLIP, check_clip_sizes, check_loaded_tower, encode_text, load_clip
from .fast import FastSession
from .inversion import fit
from .latents import prepare_latents
from .model_card import own_card
from .models import RATLIPDiscriminator, RATLIPGenerator
from .models.base import refuse_string_dtypes
from .registration import register
from .utils.compat import PortableConfig, for_diffusers
from .utils.files import check_recorded_hashes, read_json, require_regular_files
from .utils.tensors import evaluating

RECORD = "hub_export.json"  # in a folder that `ratlip export hub` has written: the hashes of all files
OUTPUT_TYPES = ("pil", "np", "pt")
_DIFFUSION_HABITS = {
    "height": "the size of the images is fixed by the model (pipe.generator.config.sample_size)",
    "width": "the size of the images is fixed by the model (pipe.generator.config.sample_size)",
    "num_inference_steps": "a GAN generates in one step; leave it out",
    "guidance_scale": "there is no guidance; use truncation= to trade variety for typical images",
    "callback_on_step_end": "a GAN generates in one step, so there is no step to call back from; leave it out",
    "negative_prompt": "there is no guidance; say what you want in prompt=",
    "negative_prompt_embeds": "there is no guidance; say what you want in prompt_embeds=",
}


class RATLIPPipeline(PortableConfig, DiffusionPipeline):
    r"""Text-to-image generation with RATLIP and its relatives, in one forward pass.

    Every component may be None as long as no call needs it; `from_pretrained(..., text_encoder=None, tokenizer=None)`
    leaves the text half out where `prompt_embeds` are at hand.

    Args:
        tokenizer ([`~transformers.CLIPTokenizer`]): tokenizer of the frozen CLIP.
        text_encoder ([`~transformers.CLIPTextModelWithProjection`]): its text tower.
        image_encoder ([`~transformers.CLIPVisionModelWithProjection`]): its image tower, which the generator borrows.
        generator ([`RATLIPGenerator`]): the generator network. Note the clash of names: in `from_pretrained` and
            `__init__`, `generator=` is the network; in `__call__`, as everywhere in diffusers, the random generator.
    """

    model_cpu_offload_seq = "text_encoder->image_encoder->generator"
    _needed_for_images = ("image_encoder", "generator")

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModelWithProjection
    image_encoder: CLIPVisionModelWithProjection
    generator: RATLIPGenerator

    # No defaults: through DiffusionPipeline.from_pretrained diffusers would no longer see these as components.
    def __init__(
        self,
        tokenizer: CLIPTokenizer,
        text_encoder: CLIPTextModelWithProjection,
        image_encoder: CLIPVisionModelWithProjection,
        generator: RATLIPGenerator,
    ):
        super().__init__()
        if isinstance(generator, torch.Generator):
            raise TypeError(
                "generator= is the network here; a random generator goes into the call: pipe(..., generator=)"
            )
        self.register_modules(
            tokenizer=tokenizer, text_encoder=text_encoder, image_encoder=image_encoder, generator=generator
        )
        self.image_processor = VaeImageProcessor(vae_scale_factor=1)
        self._fast: Any = None  # a FastSession after `optimize`, which exported code does without

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        *,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        truncation: float | None = None,
        batch_size: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        style_latents: torch.Tensor | None = None,
        style_prompt_embeds: torch.Tensor | None = None,
        **kwargs,
    ) -> ImagePipelineOutput | tuple:
        """Generate images.

        Args:
            prompt (`str` or `list[str]`, *optional*): P prompts; or give `prompt_embeds`.
            num_images_per_prompt (`int`): images per prompt; the result is ordered prompt by prompt.
            generator (`torch.Generator` or a list, *optional*): the random generator (not the network), or one per
                image. Noise is sampled image by image: one seed, one image, at every batch size.
            latents (`torch.Tensor`, *optional*): the noise z itself, [P * num_images_per_prompt, noise_dim].
            prompt_embeds (`torch.Tensor`, *optional*): raw projected text embeddings [P, D], not normalised.
            truncation (`float`, *optional*): noise entries with |z| above it are sampled again.
            batch_size (`int`, *optional*): images per forward pass; all at once by default. Models with
                `recurrence="batch_as_time"` make one at a time by default; only an explicit `batch_size` above 1
                lets the images of a batch influence each other as in the released code.
            output_type (`str`): "pil", "np" ([N, S, S, 3]) or "pt" ([N, 3, S, S]), values in [0, 1].
            return_dict (`bool`): return an `ImagePipelineOutput` instead of a tuple.
            style_latents, style_prompt_embeds (`torch.Tensor`, *optional*): style mixing: other noise (shaped as
                `latents`) and other text (as `prompt_embeds`) for the image generator, while bridge and CLIP block
                keep theirs. Of the two, the one that is left out is the same for both.

        Raises:
            TypeError, ValueError: for arguments of the wrong kind; the message says what to do.
        """
        self._check_inputs(prompt, num_images_per_prompt, prompt_embeds, truncation, batch_size, output_type, kwargs)
        device, config = self._execution_device, self.generator.config

        # 1. Text embeddings
        if prompt_embeds is None:
            assert prompt is not None  # as checked
            (prompt_embeds,) = self.encode_prompt(prompt, device)
        self._check_prompt_embeds(prompt_embeds)
        if style_prompt_embeds is not None:
            self._check_prompt_embeds(style_prompt_embeds, len(prompt_embeds))
            style_prompt_embeds = style_prompt_embeds.repeat_interleave(num_images_per_prompt, dim=0)
        prompt_embeds = prompt_embeds.repeat_interleave(num_images_per_prompt, dim=0)

        # 2. Noise
        count = len(prompt_embeds)
        latents = prepare_latents(count, config.noise_dim, generator, truncation, latents)

        inputs = [latents, prompt_embeds]
        if mixes := style_latents is not None or style_prompt_embeds is not None:
            inputs.append(
                latents if style_latents is None else prepare_latents(count, config.noise_dim, latents=style_latents)
            )
            inputs.append(prompt_embeds if style_prompt_embeds is None else style_prompt_embeds)

        # 3. Images
        batch_size = batch_size or (1 if self.generator.couples_batch else count)
        parts = [value.to(device, self.generator.dtype).split(batch_size) for value in inputs]
        with evaluating(self.generator):
            if mixes:
                self._require_plain_weights("style mixing")
            generate: Callable[..., torch.Tensor] = self._generate
            if self._fast is not None and not mixes:  # the rewritten networks read one condition
                generate = self._fast.prepare(self.generator, self.image_encoder)
            samples = [generate(*part) for part in zip(*parts, strict=True)]
        sample = torch.cat(samples).float()
        if not sample.isfinite().all():
            raise ValueError("the images hold NaN or infinite values: damaged weights, or too small a dtype")
        images = self.image_processor.postprocess(sample, output_type=output_type)

        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def save_pretrained(self, *args, **kwargs) -> None:
        """As in diffusers; raises ValueError after `optimize(keep_plain=False)`."""
        self._require_plain_weights("save_pretrained()")
        super().save_pretrained(*args, **kwargs)

    @property
    def _execution_device(self) -> torch.device:
        # The rewritten networks are on the CPU; freed plain ones are nowhere.
        freed = self._fast is not None and not self._fast.keep_plain
        return torch.device("cpu") if freed else super()._execution_device

    def _generate(self, noise: torch.Tensor, prompt_embeds: torch.Tensor, *style: torch.Tensor) -> torch.Tensor:
        mixing = {"style": style} if style else {}
        return self.generator(noise, prompt_embeds, self.image_encoder, return_dict=False, **mixing)[0]

    @torch.no_grad()
    def edit(
        self,
        prompt: str | list[str],
        edited_prompt: str | list[str],
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        keep_steps: int = 10,
        output_type: str = "pil",
    ) -> ImagePipelineOutput:
        """Change words of prompts and leave the rest of the images as it was, as far as the model allows.

        The noise is held; as words move what they do not name, too, it is then moved a little, for `keep_steps` steps
        of [`~inversion.fit`], towards what looks like the image before. On a CPU a step takes about three times as
        long as generating.

        Args:
            prompt, edited_prompt (`str` or `list[str]`): P prompts before and after.
            generator, latents, output_type: as in the call, for P images.
            keep_steps (`int`): 0 leaves the noise as it is.

        Returns:
            2P images: those of `prompt`, then those of `edited_prompt`.

        Raises:
            TypeError, ValueError: as the call does, and for lists of different lengths.
        """
        if keep_steps:
            self._require_plain_weights("edit() with keep_steps above 0")
        pairs = [[text] if isinstance(text, str) else list(text) for text in (prompt, edited_prompt)]
        if len(pairs[0]) != len(pairs[1]):
            raise ValueError(f"{len(pairs[0])} prompts cannot be edited to {len(pairs[1])}; give as many of both")
        latents = prepare_latents(len(pairs[0]), self.generator.config.noise_dim, generator, None, latents)
        options: dict[str, Any] = {"output_type": "pt", "batch_size": 1, "return_dict": False}
        (before,) = self(pairs[0], latents=latents, **options)
        (edited,) = self.encode_prompt(pairs[1])
        if keep_steps:
            networks = self.generator, self.image_encoder
            found = [
                fit(*networks, 2 * image[None] - 1, text[None], z[None], keep_steps).noise
                for image, text, z in zip(before, edited, latents, strict=True)
            ]
            latents = torch.cat(found)
        (after,) = self(prompt_embeds=edited, latents=latents, **options)
        both = torch.cat([before, after])
        return ImagePipelineOutput(images=self.image_processor.postprocess(2 * both - 1, output_type=output_type))

    def encode_prompt(self, prompt: str | list[str], device: torch.device | None = None) -> tuple[torch.Tensor]:
        """Encode prompts.

        Args:
            prompt (`str` or `list[str]`): P prompts; one that is too long is cut with a warning.
            device (`torch.device`, *optional*): where the result is wanted; the pipeline's device by default.

        Returns:
            A tuple with `prompt_embeds` [P, D]: projected text embeddings, not normalised.
        """
        self._require("tokenizer", "text_encoder")
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        prompt_embeds = self._encode(prompts).to(device or self._execution_device)
        return (prompt_embeds,)  # by this name diffusers' own tests, which read the source, know what it is

    def _encode(self, prompts: list[str]) -> torch.Tensor:
        def encode(prompts: list[str]) -> torch.Tensor:
            return encode_text(self.tokenizer, self.text_encoder, prompts, self._execution_device)

        if self._fast is None or torch.is_grad_enabled():  # embeddings that are kept have no graph
            return encode(prompts)
        return self._fast.encode(prompts, self.tokenizer, self.text_encoder, encode)

    def optimize(
        self, enabled: bool = True, *, dtype: torch.dtype | None = None, keep_plain: bool = True
    ) -> "RATLIPPipeline":
        """Generate the same images faster on a CPU from now on; `optimize(False)` goes back.

        The networks are rewritten in memory (docs of `ratlip_hf.fast`); the components stay as they are and are what
        is saved, pushed or trained. In float32 images agree with the plain path to rounding. If weights change
        later (`load_state_dict`, an optimizer's or an EMA's steps, `.to(...)`, another component), the next call
        rewrites them again; after a write through `tensor.data` to a part of a tensor, call this once more. Adapters,
        hooks or offloading that come later make the next call raise the ValueError below. Embeddings of prompts are
        kept for the next call, except where gradients are wanted.

        Args:
            enabled (`bool`): False for the plain path.
            dtype (`torch.dtype`, *optional*): of the fast computation; the generator's by default. `torch.bfloat16`
                is twice as fast on processors with its instructions, with small differences.
            keep_plain (`bool`): False frees the plain weights of generator and image tower, for programs that only
                generate. There is no way back but loading: style mixing, `edit` with `keep_steps`, `optimize` and
                `save_pretrained` raise ValueError from then on, and the generator cannot be trained.

        Returns:
            The pipeline itself.

        Raises:
            TypeError: if `enabled` is no bool, such as a dtype without its name.
            ValueError: if the networks are not on the CPU, carry adapters, hooks or offloading, are compiled, or for
                another dtype.
        """
        if not isinstance(enabled, bool):
            raise TypeError(f"enabled must be True or False, not {enabled!r}; a dtype goes into dtype=")
        self._require_plain_weights("optimize()")
        self._fast = None
        if enabled:
            self._require("image_encoder", "generator")
            session = FastSession(dtype, keep_plain)
            session.prepare(self.generator, self.image_encoder)
            self._fast = session
        return self

    @classmethod
    def from_clip(
        cls,
        clip: str | os.PathLike | CLIPModel,
        generator: RATLIPGenerator,
        tokenizer: CLIPTokenizer | None = None,
        **kwargs,
    ) -> "RATLIPPipeline":
        """Assemble a pipeline from a CLIP and a generator network, for instance after training.

        Args:
            clip: CLIP repository or folder, folder of another RATLIP pipeline, or a `CLIPModel` (then with
                `tokenizer`).
            generator: the generator network.
            tokenizer: tokenizer to use instead of the one next to the weights.
            kwargs: passed to transformers, for example `revision=` or `dtype=`.
        """
        parts = load_clip(clip, tokenizer, **kwargs)
        return cls(parts.tokenizer, parts.text_encoder, parts.image_encoder, generator)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """As in diffusers; but a missing or implausible weight, a file that differs from its checksum in an export, or
        a dtype given as a string raises ValueError.

        Without `dtype` everything is float32, except what was saved quantized; and a repository that ships its own
        code is loaded with this package's classes. Through `DiffusionPipeline.from_pretrained` diffusers ignores a
        string with a warning, and transformers fills in a missing weight of a CLIP tower with random numbers and takes
        the precision in which the tower was saved last; a missing weight of ours raises there too.
        """
        source = pretrained_model_name_or_path
        refuse_string_dtypes(kwargs)
        towers = [name for name in ("text_encoder", "image_encoder") if name not in kwargs]
        if os.path.isdir(source):
            require_regular_files(source)
            check_recorded_hashes(source, RECORD, (".safetensors", ".bin"))
        for name in towers:
            check_clip_sizes(source, name, kwargs)
        if kwargs.get("dtype") is None and kwargs.get("torch_dtype") is None and not _is_quantized(source, kwargs):
            kwargs["dtype"] = torch.float32
        pipe = super().from_pretrained(source, **for_diffusers(kwargs))
        for name in towers:
            if (tower := getattr(pipe, name)) is not None:
                check_loaded_tower(tower, source, name, kwargs)
        return pipe

    @classmethod
    def from_pipe(cls, pipeline, **kwargs):
        """As in diffusers: parts are shared, not copied, and have `dtype` (float32 by default) in both pipelines."""
        return super().from_pipe(pipeline, **for_diffusers(kwargs))

    @classmethod
    def from_single_file(
        cls,
        path: str | os.PathLike,
        clip: str | os.PathLike | CLIPModel | FrozenCLIP = DEFAULT_CLIP,
        *,
        family: str = "auto",
        coupled: bool = False,
        dtype: torch.dtype | None = None,
        **kwargs,
    ) -> "RATLIPPipeline":
        """Load an original RATLIP or GALIP checkpoint; `ratlip convert` does the same and keeps the discriminator.

        Args:
            path: the `.pth` of the original programs.
            clip: the frozen CLIP it was trained with, as for [`from_clip`].
            family: "auto", or "ratlip" or "galip" to insist on one.
            coupled: keep the released RATLIP's recurrence; see `batch_size` of the call.
            dtype: of all parts; float32 by default.
            kwargs: `sample_size=` and `prompt_layers=` where shapes leave a choice, `tokenizer=`, and options of
                transformers for the CLIP, such as `revision=`.

        Raises:
            OSError, ValueError: see [`~convert.original.convert_original`].
        """
        from .convert.original import convert_original

        refuse_string_dtypes({"dtype": dtype})
        converted = convert_original(path, clip, family=family, coupled=coupled, with_discriminator=False, **kwargs)
        for line in converted.warnings:
            warnings.warn(line, stacklevel=2)
        parts = converted.clip
        pipe = cls(parts.tokenizer, parts.text_encoder, parts.image_encoder, converted.generator)
        return pipe if dtype is None else pipe.to(dtype)

    @classmethod
    def _dict_from_json_file(cls, *args, **kwargs):
        """The index of a pipeline; this package's classes take the place of code that a repository ships for them."""
        index = super()._dict_from_json_file(*args, **kwargs)
        if isinstance(index.get("_class_name"), list):
            index["_class_name"] = cls.__name__
        if (index.get("generator") or [None])[-1] == RATLIPGenerator.__name__:
            index["generator"] = [__package__, RATLIPGenerator.__name__]
        return index

    def _upload_folder(self, working_dir, repo_id, *args, **kwargs):
        """Every way of publishing a pipeline ends here, with the card that diffusers has written or found."""
        if (readme := Path(working_dir) / "README.md").is_file():
            own_card(ModelCard.load(readme), self.components, repo_id).save(readme)
        return super()._upload_folder(working_dir, repo_id, *args, **kwargs)

    def _check_inputs(
        self, prompt, num_images_per_prompt, prompt_embeds, truncation, batch_size, output_type, unknown
    ) -> None:
        for name in unknown:
            if name in _DIFFUSION_HABITS:
                raise ValueError(f"{name} has no meaning here: {_DIFFUSION_HABITS[name]}")
            raise TypeError(f"{type(self).__name__} does not take {name!r}")
        self._require(*self._needed_for_images)
        if (prompt is None) == (prompt_embeds is None):
            raise ValueError("pass either prompt or prompt_embeds, and not both")
        if prompt is not None:
            if not isinstance(prompt, str | list | tuple):
                raise TypeError(f"prompt must be a string or a list of strings, not {type(prompt).__name__}")
            if not isinstance(prompt, str) and not all(isinstance(item, str) for item in prompt):
                raise TypeError("every prompt in the list must be a string")
            if not isinstance(prompt, str) and not prompt:
                raise ValueError("prompt is an empty list; give at least one prompt")
        elif not isinstance(prompt_embeds, torch.Tensor):
            raise TypeError(f"prompt_embeds must be a torch.Tensor, not {type(prompt_embeds).__name__}")
        counts = {"num_images_per_prompt": num_images_per_prompt}
        counts |= {} if batch_size is None else {"batch_size": batch_size}
        for name, value in counts.items():
            if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a positive integer, not {value!r}")
        if truncation is not None and (isinstance(truncation, bool) or not isinstance(truncation, Real)):
            raise TypeError(f"truncation must be a number, not {type(truncation).__name__}")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type must be one of {OUTPUT_TYPES}, not {output_type!r}")

    def _require(self, *names: str) -> None:
        if missing := [name for name in names if getattr(self, name) is None]:
            raise ValueError(f"this call needs the pipeline's {', '.join(missing)}, which it was built without")

    def _require_plain_weights(self, what: str) -> None:
        if self._fast is not None and not self._fast.keep_plain:
            raise ValueError(f"{what} needs the plain weights, which optimize(keep_plain=False) freed: load again")

    def _check_prompt_embeds(self, prompt_embeds: torch.Tensor, count: int | None = None) -> None:
        config, wanted = self.generator.config, "prompts" if count is None else count
        if prompt_embeds.ndim != 2 or prompt_embeds.shape[1] != config.text_dim or not len(prompt_embeds):
            raise ValueError(f"prompt_embeds must be [{wanted}, {config.text_dim}], not {list(prompt_embeds.shape)}")
        if count not in (None, len(prompt_embeds)):
            raise ValueError(f"style_prompt_embeds must be one for each of {count} prompts, not {len(prompt_embeds)}")
        if not prompt_embeds.is_floating_point() or not prompt_embeds.isfinite().all():
            raise ValueError("prompt_embeds are not floating point or contain NaN or infinite values")
        if config.text_norm is None and ((prompt_embeds.float().norm(dim=1) - 1).abs() < 1e-3).all():
            warnings.warn(
                "prompt_embeds have length 1; this model reads CLIP's raw text_embeds, which are not normalised",
                stacklevel=3,
            )


def _is_quantized(source: str | os.PathLike, options: dict) -> bool:
    """Whether the generator was saved quantized, together with the dtype that its other weights need."""
    where = {key: options[key] for key in ("revision", "token", "cache_dir", "local_files_only") if key in options}
    file = cached_file(
        source, "config.json", subfolder="generator", _raise_exceptions_for_missing_entries=False, **where
    )
    return bool(file) and "quantization_config" in read_json(file)


register(RATLIPPipeline, RATLIPGenerator, RATLIPDiscriminator)
