"""The small CLIP of the synthetic birds: its architecture and tokenizer, the checks that it binds words to
parts on unseen colours, and its training (`python -m ratlip_hf.synthetic_birds.small_clip`)."""

import json
import random
import sys
import time
from dataclasses import replace

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import nn
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from ..clip import prepare_pixels
from ..utils.errors import CommandParser, UserError, command_line
from ..utils.files import atomic_directory, atomic_write
from .attributes import (
    COLOURS,
    FIELD_VOCABULARIES,
    PARTS,
    BirdAttributes,
    attribute_labels,
    swap_two_parts,
    with_another_word,
)
from .captions import any_caption, full_caption, make_captions, named_scene, scene_caption
from .renderer import render_pixels, sample_birds, wording_rng

MAX_TOKENS = 40

_BEGIN, _END, _WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"


def build_tokenizer(captions: list[str], vocab_size: int = 700) -> CLIPTokenizer:
    """Train a `CLIPTokenizer` (lower-cased byte-level BPE, at most 40 tokens) on captions.

    The end token has the highest id, so both ways in which CLIP looks for it agree.
    The vocabulary holds all byte symbols and thus never has fewer than 514 entries.
    """
    pattern = CLIPTokenizer().backend_tokenizer
    bpe = Tokenizer(
        models.BPE(continuing_subword_prefix="", end_of_word_suffix=_WORD_END, fuse_unk=False, unk_token=_END)
    )
    bpe.normalizer, bpe.pre_tokenizer = pattern.normalizer, pattern.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 2,
        end_of_word_suffix=_WORD_END,
        continuing_subword_prefix="",
        initial_alphabet=alphabet,
        show_progress=False,
    )
    bpe.train_from_iterator(captions, trainer)
    learned = json.loads(bpe.to_str())["model"]
    merges = [tuple(pair) for pair in learned["merges"]]
    # The trainer leaves out most word-final byte symbols; without them an unseen word would lose letters.
    symbols = [*alphabet, *(letter + _WORD_END for letter in alphabet)]
    symbols += [first + second for first, second in merges] + list(learned["vocab"])
    symbols = [*dict.fromkeys(symbols), _BEGIN, _END]
    vocabulary = {symbol: index for index, symbol in enumerate(symbols)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS)


def small_clip_config(tokenizer: CLIPTokenizer, image_size: int = 64) -> CLIPConfig:
    """Configuration of a CLIP with 1.2 million parameters: ViT of width 96 on 8-pixel patches, text width 128."""
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "hidden_size": 96,
        "intermediate_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "patch_size": 8,
        "image_size": image_size,
        "projection_dim": 128,
    }
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": MAX_TOKENS,
        "projection_dim": 128,
        **special,
    }
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=128, **special)


_PART_PROMPTS = {"crown": "a bird with a {} crown", "belly": "a bird with a {} belly", "wing": "a bird with {} wings"}
_BATCH = 256
_CHOICE_COUNT = 300


def embed_texts(model: CLIPModel, tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """Unit-length text embeddings [N, projection]; padded only to the longest caption given."""
    tokens = tokenizer(captions, padding=True, truncation=True, return_tensors="pt")
    return functional.normalize(model.get_text_features(**tokens).pooler_output, dim=-1)


def embed_images(model: CLIPModel, pixels: torch.Tensor) -> torch.Tensor:
    """Unit-length image embeddings [N, projection] of images in [0, 1]."""
    pixels = prepare_pixels(2 * pixels - 1, model.config.vision_config.image_size)
    return functional.normalize(model.get_image_features(pixels).pooler_output, dim=-1)


class HeldOutChecks:
    """Renders of held-out triples with their captions, kept so that a model can be checked repeatedly."""

    def __init__(self, tokenizer: CLIPTokenizer, count: int = 1200, seed: int = 0, image_size: int = 64):
        birds, seeds = sample_birds("clip_check", seed, count, "test")
        # A bird of one colour has no exchanged caption to be confused with.
        kept = [index for index, bird in enumerate(birds) if len(set(bird.colours)) > 1]
        birds, seeds = [birds[index] for index in kept], [seeds[index] for index in kept]
        self.tokenizer = tokenizer
        self.birds: list[BirdAttributes] = birds
        self.pixels = render_pixels(birds, seeds, image_size).float() / 255
        self.labels = torch.tensor([bird.colour_labels for bird in birds])
        self.captions, self.exchanged, self.elsewhere, self.wordings = [], [], [], []
        for bird, render_seed in zip(birds, seeds, strict=True):
            rng = wording_rng(render_seed)
            exchanged, wording = swap_two_parts(bird, rng), rng.getrandbits(32)
            self.wordings.append(wording)
            self.captions.append(full_caption(bird, random.Random(wording)))
            self.exchanged.append(full_caption(exchanged, random.Random(wording)))
            self.elsewhere.append(self._scene_changed(bird, wording, rng))

    def _scene_changed(self, bird: BirdAttributes, wording: int, rng: random.Random) -> str | None:
        """The last caption with another direction, background or perch; None where it names none of them."""
        named = named_scene(self.captions[-1], bird)
        if not named:
            return None
        return full_caption(with_another_word(bird, rng.choice(named), rng), random.Random(wording))

    @torch.no_grad()
    def measure_choice(self, model: CLIPModel) -> dict[str, float]:
        """Return per part how often a render prefers its full caption to the seven with another colour for that part.

        Much slower than `measure`, hence on the first 300 renders only; names are "crown_in_caption" and so on.
        """
        model.eval()
        images = embed_images(model, self.pixels[:_CHOICE_COUNT])
        scores = {}
        for index, part in enumerate(PARTS):
            choices = [
                full_caption(replace(bird, **{part: colour}), random.Random(wording))
                for bird, wording in zip(self.birds[: len(images)], self.wordings, strict=False)
                for colour in COLOURS
            ]
            batches = (choices[start : start + _BATCH] for start in range(0, len(choices), _BATCH))
            texts = torch.cat([embed_texts(model, self.tokenizer, batch) for batch in batches])
            guesses = torch.einsum("nd,ncd->nc", images, texts.unflatten(0, (len(images), -1))).argmax(-1)
            hits = guesses == self.labels[: len(images), index]
            scores[f"{part}_in_caption"] = round(hits.float().mean().item(), 4)
        return scores

    @torch.no_grad()
    def measure(self, model: CLIPModel) -> dict[str, float]:
        """Return the share of renders that prefer their caption over the exchanged one ("swap_accuracy") and over one
        of another scene ("scene_accuracy", of those that name a scene; 0 if none does), the zero-shot colour accuracy
        per part ("crown", "belly", "wing"), and the number of renders ("count")."""
        was_training = model.training
        model.eval()
        images = torch.cat([embed_images(model, pixels) for pixels in self.pixels.split(_BATCH)])
        truth = (images * embed_texts(model, self.tokenizer, self.captions)).sum(-1)
        rival = (images * embed_texts(model, self.tokenizer, self.exchanged)).sum(-1)
        named = [index for index, text in enumerate(self.elsewhere) if text is not None]
        other = embed_texts(model, self.tokenizer, [self.elsewhere[index] for index in named] or [""])
        scene = truth[named] > (images[named] * other[: len(named)]).sum(-1)
        scores = {"swap_accuracy": (truth > rival).float().mean().item()}
        scores["scene_accuracy"] = scene.float().mean().item() if named else 0.0
        for index, part in enumerate(PARTS):
            prompts = embed_texts(model, self.tokenizer, [_PART_PROMPTS[part].format(colour) for colour in COLOURS])
            guesses = (images @ prompts.T).argmax(-1)
            scores[part] = (guesses == self.labels[:, index]).float().mean().item()
        model.train(was_training)
        return {name: round(value, 4) for name, value in scores.items()} | {"count": len(self.captions)}


# What the tests by rival captions must reach: colours exchanged, and another scene.
GATES = {"swap_accuracy": 0.98, "scene_accuracy": 0.95}

_WARMUP_STEPS = 100
_CAPTIONS_FOR_TOKENIZER = 2000
_LONG_TEXT_EVERY = 8
# Where every caption names colours, both towers learn those and are never made to learn anything else.
_SCENE_EVERY = 3
_MAX_PIXEL_NOISE = 0.08
_LABEL_SCALE = 10.0


def caption_with_rivals(bird: BirdAttributes, rng: random.Random, long: bool = False) -> tuple[str, str, str, str]:
    """A caption and three rivals: two parts' colours exchanged, one part in another colour, another scene.

    The scene is another direction, background or perch, one that the caption names. Where it names none, and for the
    exchange in a bird of one colour, the rival equals the caption; so does a colour that the caption leaves out.
    `long` joins two captions into one text.
    """
    states = [rng.getrandbits(32) for _ in range(2 if long else 1)]

    def text(each: BirdAttributes) -> str:
        return ". ".join(any_caption(each, random.Random(state)) for state in states)

    caption = text(bird)
    exchanged = swap_two_parts(bird, rng) if len(set(bird.colours)) > 1 else bird
    scene = named_scene(caption, bird)
    elsewhere = with_another_word(bird, rng.choice(scene), rng) if scene else bird
    return caption, *map(text, (exchanged, with_another_word(bird, rng.choice(PARTS), rng), elsewhere))


def scene_with_rivals(bird: BirdAttributes, rng: random.Random) -> tuple[str, str, str, str]:
    """A caption of the scene alone, and the same with another direction, another background, another perch."""
    state = rng.getrandbits(32)
    birds = [bird, *(with_another_word(bird, name, rng) for name in ("direction", "background", "perch"))]
    return tuple(scene_caption(each, random.Random(state)) for each in birds)


def contrastive_loss(images: torch.Tensor, texts: torch.Tensor, captions: list[str], scale) -> torch.Tensor:
    """Symmetric contrastive loss of N images against their N captions followed by any number of rival captions.

    `images` [N, D] and `texts` [N + rivals, D] have unit length.
    A text equal to an image's own caption is no negative of it.
    """
    count = len(images)
    number = {caption: index for index, caption in enumerate(dict.fromkeys(captions))}
    identity = torch.tensor([number[caption] for caption in captions])
    same_text = identity[:count, None] == identity[None, :]
    same_text[:, :count].fill_diagonal_(False)
    logits = (scale * images @ texts.T).masked_fill(same_text, float("-inf"))
    targets = torch.arange(count)
    to_text = functional.cross_entropy(logits, targets)
    to_image = functional.cross_entropy(logits[:, :count].T, targets)
    return (to_text + to_image) / 2


class LabelHead(nn.Module):
    """Cross-entropy of a linear classifier of all attributes on unit-length image embeddings [N, D].

    Only for training: it makes the image tower look at everything from the first step, where captions alone would
    teach it colours for thousands of steps before it learns anything else.
    """

    def __init__(self, width: int):
        super().__init__()
        self.words = [len(vocabulary) for vocabulary in FIELD_VOCABULARIES.values()]
        self.linear = nn.Linear(width, sum(self.words))

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean over the fields of `BirdAttributes`; `labels` [N, fields] are indices of their words."""
        logits = self.linear(_LABEL_SCALE * images).split(self.words, dim=1)
        losses = [functional.cross_entropy(each, labels[:, field]) for field, each in enumerate(logits)]
        return torch.stack(losses).mean()


class _Batches:
    """Samples batches of noisy renders with fresh caption pairs from a pool rendered once."""

    def __init__(self, seed: int, pool_size: int, batch_size: int, image_size: int):
        self.birds, seeds = sample_birds("clip", seed, pool_size, "train")
        self.labels = torch.tensor([attribute_labels(bird, tuple(FIELD_VOCABULARIES)) for bird in self.birds])
        self.pixels = render_pixels(self.birds, seeds, image_size)
        self.rng = random.Random(seeds[0])
        self.batch_size = batch_size
        self.batches = 0

    def sample(self) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
        """Return images [B, 3, H, W] near [0, 1], their labels, and B captions followed by 3 B rival ones."""
        self.batches += 1
        # Without texts longer than any single caption the last position embeddings would stay untrained.
        long = self.batches % _LONG_TEXT_EVERY == 0
        chosen = self.rng.sample(range(len(self.birds)), self.batch_size)
        pixels = self.pixels[chosen].float() / 255
        noise_level = torch.rand(len(chosen), 1, 1, 1) * _MAX_PIXEL_NOISE
        birds = [self.birds[index] for index in chosen]
        if self.batches % _SCENE_EVERY == 0:
            texts = [scene_with_rivals(bird, self.rng) for bird in birds]
        else:
            texts = [caption_with_rivals(bird, self.rng, long) for bird in birds]
        captions = [caption for kind in zip(*texts, strict=True) for caption in kind]
        return pixels + noise_level * torch.randn_like(pixels), self.labels[chosen], captions


def train_small_clip(
    seed: int = 0,
    max_steps: int = 3000,
    tail_steps: int = 400,
    check_every: int = 200,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    pool_size: int = 20_000,
    check_count: int = 1200,
    image_size: int = 64,
) -> tuple[CLIPModel, CLIPTokenizer, dict]:
    """Train until both tests by rival captions on held-out renders reach `GATES` (or for `max_steps`), then cool down.

    The learning rate is constant after a short warm-up and falls linearly to zero during the last `tail_steps`.
    Returns the model in eval mode, its tokenizer, and a report with the steps and the scores of `HeldOutChecks`.
    """
    torch.manual_seed(seed)
    batches = _Batches(seed, pool_size, batch_size, image_size)
    rng = random.Random(seed)
    tokenizer = build_tokenizer(
        [caption for bird in batches.birds[:_CAPTIONS_FOR_TOKENIZER] for caption in make_captions(bird, rng)]
    )
    model = CLIPModel(small_clip_config(tokenizer, image_size)).train()
    # With bfloat16 on a CPU, plain attention trains almost twice as fast as the fused kernel.
    model.set_attn_implementation("eager")
    label_head = LabelHead(model.projection_dim)
    parameters = [*model.parameters(), *label_head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.05)
    checks = HeldOutChecks(tokenizer, check_count, image_size=image_size)
    start, step, last_step = time.monotonic(), 0, None
    while step != last_step:
        remaining = tail_steps if last_step is None else last_step - step
        rate = learning_rate * min((step + 1) / _WARMUP_STEPS, remaining / tail_steps)
        loss = _training_step(model, tokenizer, label_head, optimizer, batches, rate)
        step += 1
        if step % check_every == 0 or step == max_steps:
            scores = checks.measure(model)
            minutes = (time.monotonic() - start) / 60
            print(f"step {step}  loss {loss:.3f}  lr {rate:.1e}  {minutes:.1f} min  {scores}", flush=True)
            if last_step is None and (not below_gates(scores) or step >= max_steps):
                last_step = step + tail_steps
    report = {"seed": seed, "steps": step, "gates": GATES, **checks.measure(model), **checks.measure_choice(model)}
    return model.eval(), tokenizer, report


def below_gates(scores: dict[str, float]) -> list[str]:
    """The scores that stay below their gates, as text."""
    return [f"{name} {scores[name]} below {gate}" for name, gate in GATES.items() if scores[name] < gate]


def _training_step(
    model: CLIPModel, tokenizer: CLIPTokenizer, label_head: LabelHead, optimizer, batches: _Batches, rate: float
) -> float:
    """Sample a batch and make one optimizer step at the given learning rate; returns the contrastive loss."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    pixels, labels, captions = batches.sample()
    with torch.autocast("cpu", torch.bfloat16):
        texts = embed_texts(model, tokenizer, captions).float()
        images = embed_images(model, pixels).float()
    loss = contrastive_loss(images, texts, captions, model.logit_scale.exp().clamp(max=100))
    optimizer.zero_grad(set_to_none=True)
    (loss + label_head(images, labels)).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()


@command_line
def main(arguments: list[str] | None = None) -> None:
    """Train, check the gate, and write model, tokenizer and `training_report.json` into one folder."""
    parser = CommandParser(description=main.__doc__)
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max_steps", type=int, default=3000, help="longest time to wait for the gate")
    parser.add_argument("--tail_steps", type=int, default=400, help="steps with falling learning rate after the gate")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    start = time.monotonic()
    model, tokenizer, report = train_small_clip(options.seed, options.max_steps, options.tail_steps)
    if below := below_gates(report):
        raise UserError(f"not good enough: {', '.join(below)}; try another --seed or more --max_steps")
    report["minutes"] = round((time.monotonic() - start) / 60, 1)
    with atomic_directory(options.output_dir) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        atomic_write(folder / "training_report.json", json.dumps(report, indent=2) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    sys.exit(main())
