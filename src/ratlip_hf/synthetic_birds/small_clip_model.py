"""The architecture of the small CLIP and its tokenizer, before any training.
Owns their sizes; both are ordinary `transformers` objects."""

import json

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPConfig, CLIPTokenizer

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
