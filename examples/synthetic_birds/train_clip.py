"""Trains a small CLIP on synthetic birds, and writes it: architecture and tokenizer, what it is taught with, training.
Images, captions, rival captions and labels are of training triples only; `clip_checks.py` says when it will do."""

import json
import math
import random
import sys
import time
from functools import partial

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import nn
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from clip_checks import GATES, RivalChecks, below_gates
from ratlip_hf.clip import prepare_pixels
from ratlip_hf.evaluation.inputs import as_images
from ratlip_hf.synthetic_birds.attributes import (
    FIELD_VOCABULARIES,
    PARTS,
    BirdAttributes,
    attribute_labels,
    swap_two_parts,
    with_another_word,
)
from ratlip_hf.synthetic_birds.captions import any_caption, make_captions, named_scene, scene_caption
from ratlip_hf.synthetic_birds.renderer import render_pixels, sample_birds
from ratlip_hf.utils.errors import CommandParser, UserError, command_line
from ratlip_hf.utils.files import atomic_directory, atomic_write

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


def small_clip_config(tokenizer: CLIPTokenizer, image_size: int = 64, patch_size: int = 8) -> CLIPConfig:
    """Configuration of a CLIP with 1.2 million parameters: a ViT of width 96, a text tower of width 128."""
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
        "patch_size": patch_size,
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


def enlarged(model: CLIPModel, image_size: int, patch_size: int) -> CLIPModel:
    """A CLIP for larger images that starts as another one, but for its patches, which it learns from nothing.

    Positions are interpolated from the other's grid.
    """
    config = CLIPConfig.from_dict(model.config.to_dict())
    config.vision_config.image_size, config.vision_config.patch_size = image_size, patch_size
    larger = CLIPModel(config)
    weights = model.state_dict()
    for name in [name for name in weights if ".patch_embedding." in name or ".position_ids" in name]:
        del weights[name]
    name = "vision_model.embeddings.position_embedding.weight"
    positions = weights[name]
    old, new = (round(math.sqrt(count - 1)) for count in (len(positions), len(larger.state_dict()[name])))
    grid = positions[1:].T.reshape(1, -1, old, old)
    grid = functional.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    weights[name] = torch.cat([positions[:1], grid[0].flatten(1).T])
    larger.load_state_dict(weights, strict=False)
    return larger


_WARMUP_STEPS = 100
_CAPTIONS_FOR_TOKENIZER = 2000
_LONG_TEXT_EVERY = 8
# Where every caption names colours, both towers learn those and are never made to learn anything else.
_SCENE_EVERY = 3
_MAX_PIXEL_NOISE = 0.16  # of a range of 2
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


def embed_texts(model: CLIPModel, tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """Text embeddings [N, projection]; padded only to the longest caption given."""
    tokens = tokenizer(captions, padding=True, truncation=True, return_tensors="pt")
    return model.get_text_features(**tokens).pooler_output


def embed_images(model: CLIPModel, images: torch.Tensor) -> torch.Tensor:
    """Image embeddings [N, projection] of images in [-1, 1]."""
    pixels = prepare_pixels(images, model.config.vision_config.image_size)
    return model.get_image_features(pixels).pooler_output


class Batches:
    """Samples batches of noisy renders with fresh caption pairs from a pool rendered once."""

    def __init__(self, seed: int, pool_size: int, batch_size: int, image_size: int):
        self.birds, seeds = sample_birds("clip", seed, pool_size, "train")
        self.labels = torch.tensor([attribute_labels(bird, tuple(FIELD_VOCABULARIES)) for bird in self.birds])
        self.pixels = render_pixels(self.birds, seeds, image_size)
        self.rng = random.Random(seeds[0])
        self.batch_size = batch_size
        self.batches = 0

    def sample(self) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
        """Return images [B, 3, H, W] near [-1, 1], their labels, and B captions followed by 3 B rival ones."""
        chosen, captions = self.choose()
        images = as_images(self.pixels[chosen])
        noise_level = torch.rand(len(chosen), 1, 1, 1) * _MAX_PIXEL_NOISE
        return images + noise_level * torch.randn_like(images), self.labels[chosen], captions

    def choose(self) -> tuple[list[int], list[str]]:
        """The indices of the next batch's birds, and the texts of `sample`."""
        self.batches += 1
        # Without texts longer than any single caption the last position embeddings would stay untrained.
        long = self.batches % _LONG_TEXT_EVERY == 0
        chosen = self.rng.sample(range(len(self.birds)), self.batch_size)
        birds = [self.birds[index] for index in chosen]
        if self.batches % _SCENE_EVERY == 0:
            texts = [scene_with_rivals(bird, self.rng) for bird in birds]
        else:
            texts = [caption_with_rivals(bird, self.rng, long) for bird in birds]
        return chosen, [caption for kind in zip(*texts, strict=True) for caption in kind]


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
    patch_size: int = 8,
    start_from: str | None = None,
) -> tuple[CLIPModel, CLIPTokenizer, dict]:
    """Train until both tests by rival captions reach their gates (or for `max_steps`), then cool down.

    `start_from` is a folder of a small CLIP for smaller images, whose tokenizer and weights this one starts with.
    The learning rate is constant after a short warm-up and falls linearly to zero during the last `tail_steps`.
    Returns the model in eval mode, its tokenizer, and a report with the steps and the scores of `RivalChecks`.
    """
    torch.manual_seed(seed)
    batches = Batches(seed, pool_size, batch_size, image_size)
    if start_from:
        tokenizer = CLIPTokenizer.from_pretrained(start_from)
        model = enlarged(CLIPModel.from_pretrained(start_from), image_size, patch_size).train()
    else:
        rng = random.Random(seed)
        tokenizer = build_tokenizer(
            [caption for bird in batches.birds[:_CAPTIONS_FOR_TOKENIZER] for caption in make_captions(bird, rng)]
        )
        model = CLIPModel(small_clip_config(tokenizer, image_size, patch_size)).train()
    label_head = LabelHead(model.projection_dim)
    parameters = [*model.parameters(), *label_head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.05)
    checks = RivalChecks(partial(embed_texts, model, tokenizer), partial(embed_images, model), check_count, image_size)
    start, step, last_step = time.monotonic(), 0, None
    while step != last_step:
        remaining = tail_steps if last_step is None else last_step - step
        rate = learning_rate * min((step + 1) / _WARMUP_STEPS, remaining / tail_steps)
        loss = _training_step(model, tokenizer, label_head, optimizer, batches, rate)
        step += 1
        if step % check_every == 0 or step == max_steps:
            model.eval()
            scores = checks.measure()
            model.train()
            minutes = (time.monotonic() - start) / 60
            print(f"step {step}  loss {loss:.3f}  lr {rate:.1e}  {minutes:.1f} min  {scores}", flush=True)
            if last_step is None and (not below_gates(scores) or step >= max_steps):
                last_step = step + tail_steps
    model.eval()
    report = {"seed": seed, "steps": step, "gates": GATES, **checks.measure(), **checks.measure_choice()}
    return model, tokenizer, report


def _training_step(
    model: CLIPModel, tokenizer: CLIPTokenizer, label_head: LabelHead, optimizer, batches: Batches, rate: float
) -> float:
    """Sample a batch and make one optimizer step at the given learning rate; returns the contrastive loss."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    pixels, labels, captions = batches.sample()
    texts = functional.normalize(embed_texts(model, tokenizer, captions), dim=1)
    images = functional.normalize(embed_images(model, pixels), dim=1)
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
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--patch_size", type=int, default=8)
    parser.add_argument("--start_from", help="folder of a small CLIP for smaller images, to start with its weights")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    start = time.monotonic()
    chosen = {name: getattr(options, name) for name in ("image_size", "patch_size", "start_from")}
    model, tokenizer, report = train_small_clip(options.seed, options.max_steps, options.tail_steps, **chosen)
    report |= {"image_size": options.image_size, "patch_size": options.patch_size}
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
