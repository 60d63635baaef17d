"""Behaviour of the synthetic-birds world: attributes, renderer, captions, dataset, prompts, CLIP, judge.
Training functions run for a step or two; no quality is claimed here."""

import hashlib
import itertools
import random
import re
import subprocess
import sys
from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
from transformers import CLIPModel, CLIPTokenizer

import train_clip
import train_scorer
from clip_checks import RivalChecks
from ratlip_hf.bundled import find_world
from ratlip_hf.synthetic_birds import captions
from ratlip_hf.synthetic_birds.attributes import (
    COLOURS,
    FIELD_VOCABULARIES,
    PARTS,
    SCENE,
    SPLITS,
    BirdAttributes,
    sample_attributes,
    split_of,
    swap_two_parts,
    with_another_word,
)
from ratlip_hf.synthetic_birds.dataset import load_prompts, make_dataset, make_prompts, prompt_bird
from ratlip_hf.synthetic_birds.judge import BirdJudge
from ratlip_hf.synthetic_birds.renderer import render_bird, render_masks, render_pixels, sample_birds
from ratlip_hf.synthetic_birds.scorer import BirdScorer
from ratlip_hf.utils.tensors import weights_sha256
from train_clip import MAX_TOKENS, build_tokenizer, small_clip_config
from train_judge import train_judge

BIRD = BirdAttributes("red", "yellow", "blue", direction="left", background="snow", perch="rock", size="small")
_WORD = "|".join(COLOURS)
_FULL_PATTERNS = {
    "crown": rf"({_WORD})(?: crown| cap| head|-crowned)|(?:crown|cap|head) is ({_WORD})",
    "belly": rf"({_WORD}) (?:belly|breast|underside|chest)|(?:belly|breast|underside|chest) is ({_WORD})"
    rf"|({_WORD}) bird|bird is ({_WORD})",
    "wing": rf"({_WORD}) wings?|wings are ({_WORD})",
}


def parse_colours(caption: str) -> tuple[str, ...]:
    """Read crown, belly and wing colours off a full caption."""
    found = (re.search(_FULL_PATTERNS[part], caption) for part in PARTS)
    return tuple(next(filter(None, match.groups())) for match in found)


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    rng = random.Random(0)
    return build_tokenizer([captions.any_caption(sample_attributes(rng), rng) for _ in range(300)])


class TestAttributes:
    def test_splits_are_latin_squares_and_every_pair_of_colours_is_seen(self):
        birds = [BirdAttributes(*triple) for triple in itertools.product(COLOURS, repeat=3)]
        triples = {split: [bird.colours for bird in birds if split_of(bird) == split] for split in SPLITS}
        assert [len(triples[split]) for split in SPLITS] == [384, 64, 64]
        for first, second in ((0, 1), (0, 2), (1, 2)):
            for split in SPLITS:
                assert len({(colours[first], colours[second]) for colours in triples[split]}) == 64

    @pytest.mark.parametrize("split", [*SPLITS, None])
    def test_samples_respect_their_split(self, split):
        rng = random.Random(1)
        assert {split_of(sample_attributes(rng, split)) for _ in range(300)} == ({split} if split else set(SPLITS))

    def test_unknown_words_and_splits_are_refused(self):
        with pytest.raises(ValueError, match=r"crown must be one of red, .*; got 'pink'"):
            replace(BIRD, crown="pink")
        with pytest.raises(ValueError, match="split must be one of train, validation, test"):
            sample_attributes(random.Random(0), "valid")

    def test_another_word_changes_one_field_and_never_leaves_the_training_triples(self):
        rng = random.Random(2)
        for field in FIELD_VOCABULARIES:
            for _ in range(200):
                bird = sample_attributes(rng, "train")
                other = with_another_word(bird, field, rng)
                assert split_of(other) == "train" and getattr(other, field) != getattr(bird, field)
                assert replace(other, **{field: getattr(bird, field)}) == bird

    def test_swap_exchanges_two_different_colours_and_nothing_else(self):
        rng = random.Random(2)
        for _ in range(100):
            bird = sample_attributes(rng)
            if len(set(bird.colours)) == 1:
                continue
            swapped = swap_two_parts(bird, rng)
            assert swapped.colours != bird.colours
            assert sorted(swapped.colours) == sorted(bird.colours)
            assert replace(swapped, crown=bird.crown, belly=bird.belly, wing=bird.wing) == bird

    def test_a_bird_of_one_colour_cannot_be_swapped(self):
        with pytest.raises(ValueError, match="all red bird"):
            swap_two_parts(BirdAttributes("red", "red", "red"), random.Random(0))


class TestRenderer:
    def test_same_seed_gives_the_same_bytes_in_another_process(self):
        code = (
            "import hashlib; from ratlip_hf.synthetic_birds.renderer import BirdAttributes, render_bird;"
            "bird = BirdAttributes('red', 'yellow', 'blue', 'left', 'snow', 'rock', 'small');"
            "print(hashlib.sha256(render_bird(bird, 7).tobytes()).hexdigest())"
        )
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        assert hashlib.sha256(render_bird(BIRD, 7).tobytes()).hexdigest() == other

    @pytest.mark.parametrize("image_size", [64, 100, 256])
    def test_renders_rgb_at_any_size_from_64(self, image_size):
        image = render_bird(BIRD, 0, image_size)
        assert (image.mode, image.size) == ("RGB", (image_size, image_size))

    def test_refuses_smaller_images(self):
        with pytest.raises(ValueError, match="at least 64; got 32"):
            render_bird(BIRD, 0, 32)

    def test_seeds_vary_the_pose(self):
        assert len({render_bird(BIRD, seed).tobytes() for seed in range(5)}) == 5

    @pytest.mark.parametrize("field", ["direction", "background", "perch", "size", *PARTS])
    def test_every_attribute_changes_many_pixels(self, field):
        other = {"direction": "right", "background": "meadow", "perch": "grass", "size": "large"}.get(field, "black")
        pair = render_pixels([BIRD, replace(BIRD, **{field: other})], [3, 3]).float()
        # The smallest part of a small bird, its crown, still covers over one percent of the image.
        assert ((pair[0] - pair[1]).abs().amax(0) > 40).float().mean() > 0.01 or field == "background"
        assert (pair[0] - pair[1]).abs().mean() > 1

    def test_masks_are_where_the_parts_are(self):
        masks, image = render_masks(BIRD, 3), np.asarray(render_bird(BIRD, 3)).astype(int)
        assert masks.shape == (3, 64, 64) and masks.min() >= 0 and masks.max() == 1
        assert masks.sum(axis=0).max() <= 1.001  # no pixel is covered twice
        for mask, colour in zip(masks, ([212, 36, 46], [250, 218, 48], [40, 92, 214]), strict=True):
            inside = image[mask == 1]
            assert 40 < len(inside) < 1000
            assert (abs(np.median(inside, axis=0) - colour) < 30).all()  # red crown, yellow belly, blue wing
        larger = render_masks(BIRD, 3, 128)
        assert np.allclose(masks, larger.reshape(3, 64, 2, 64, 2).mean(axis=(2, 4)), atol=0.5)
        assert abs(larger.mean() / masks.mean() - 1) < 0.05

    def test_the_masks_of_one_word_do_not_depend_on_it(self):
        assert np.array_equal(render_masks(BIRD, 3), render_masks(replace(BIRD, crown="black", wing="white"), 3))


class TestCaptions:
    def test_full_captions_name_every_part(self):
        rng = random.Random(3)
        for _ in range(500):
            bird = sample_attributes(rng)
            caption = captions.full_caption(bird, rng)
            assert parse_colours(caption) == bird.colours, caption

    def test_same_generator_state_changes_only_the_colours(self):
        rng = random.Random(4)
        for state in range(200):
            bird = sample_attributes(rng, "test")
            if len(set(bird.colours)) == 1:
                continue
            swapped = swap_two_parts(bird, rng)
            pair = [captions.full_caption(each, random.Random(state)) for each in (bird, swapped)]
            skeletons = {re.sub(rf"\b(an? )?({_WORD})\b", "*", caption) for caption in pair}
            skeletons = {re.sub(r"\ban (?=small|little|tiny|large|big|bird)", "a ", text) for text in skeletons}
            assert len(skeletons) == 1
            assert pair[0] != pair[1]

    def test_ten_captions_at_least_half_of_them_full(self):
        rng = random.Random(5)
        for _ in range(50):
            bird = sample_attributes(rng, "train")
            if len(set(bird.colours)) < 3:
                continue
            texts = captions.make_captions(bird, rng)
            assert len(texts) == 10
            assert sum(all(colour in text for colour in bird.colours) for text in texts) >= 5

    def test_articles_lengths_and_coinciding_colours(self):
        rng = random.Random(6)
        texts = [captions.any_caption(sample_attributes(rng), rng) for _ in range(3000)]
        texts += [captions.any_caption(BirdAttributes("red", "red", "red"), rng) for _ in range(100)]
        assert not [text for text in texts if re.search(r"\ba [aeio]|\ban [^aeio]|  |,,|^ | $", text)]
        assert max(len(text.split()) for text in texts) <= captions.MAX_WORDS
        assert any(text.startswith("an all red bird") for text in texts)
        assert any("completely red bird" in text for text in texts)

    def test_everyday_captions_call_a_bird_by_its_belly(self):
        rng = random.Random(7)
        texts = [captions.loose_caption(BIRD, rng) for _ in range(300)]
        assert "a small yellow bird with blue wings" in texts
        assert not any("red bird" in text or "blue bird" in text for text in texts)

    def test_setting_words_match_the_attributes(self):
        rng = random.Random(8)
        text = " ".join(captions.any_caption(BIRD, rng) for _ in range(300))
        assert re.search("facing left", text) and re.search("on a rock", text) and re.search("in the snow", text)
        assert not re.search(r"right|branch|meadow|sunset|\blarge|\bbig", text)


class TestDataset:
    def test_is_an_ordinary_dataset(self):
        data = make_dataset("train", 12, seed=3)
        assert isinstance(data, datasets.Dataset) and len(data) == 12
        row = data[0]
        assert row["image"].size == (64, 64) and len(row["captions"]) == 10
        assert data.features["crown"].names == list(COLOURS)
        assert all(isinstance(data.features[name], datasets.ClassLabel) for name in ("direction", "perch", "size"))
        assert make_dataset("train", 12, seed=3)[5] == data[5]
        assert make_dataset("train", 12, seed=4)["captions"][:] != data["captions"][:]

    @pytest.mark.parametrize("split", SPLITS)
    def test_splits_share_no_colour_triple(self, split):
        data = make_dataset(split, 60).remove_columns("image")
        birds = [BirdAttributes(*(COLOURS[row[part]] for part in PARTS)) for row in data]
        assert set(map(split_of, birds)) == {split}

    @pytest.mark.parametrize(
        ("arguments", "message"), [(("valid", 3), "split"), (("train", 0), "num_images"), (("train", 3, -1), "seed")]
    )
    def test_wrong_arguments_are_refused(self, arguments, message):
        with pytest.raises(ValueError, match=f"^{message} must"):
            make_dataset(*arguments)

    @pytest.mark.parametrize("split", ["validation", "test"])
    def test_prompts_are_those_of_their_split(self, split):
        prompts = load_prompts(split)
        assert prompts == make_prompts(split)
        assert len(prompts) == 400
        assert {split_of(prompt_bird(entry)) for entry in prompts} == {split}
        assert all(parse_colours(entry["prompt"]) == prompt_bird(entry).colours for entry in prompts)

    def test_other_seeds_give_fresh_prompts(self):
        fresh = make_prompts("test", 50, seed=7)
        assert fresh == make_prompts("test", 50, seed=7) != make_prompts("test", 50)


class TestSmallClip:
    def test_end_token_has_the_highest_id_and_different_texts_differ(self, tokenizer):
        assert tokenizer.eos_token_id == len(tokenizer) - 1
        config = small_clip_config(tokenizer)
        assert config.text_config.eos_token_id == tokenizer.eos_token_id
        assert config.text_config.max_position_embeddings == tokenizer.model_max_length == MAX_TOKENS
        torch.manual_seed(0)
        model = CLIPModel(config).eval()
        tokens = tokenizer(["a red bird", "a blue bird"], padding="max_length", truncation=True, return_tensors="pt")
        first, second = model.get_text_features(**tokens).pooler_output
        assert not torch.allclose(first, second)

    def test_unknown_words_keep_their_letters(self, tokenizer):
        assert tokenizer.decode(tokenizer("a zyx kiwi!", add_special_tokens=False).input_ids).split() == [
            "a", "zyx", "kiwi", "!",
        ]  # fmt: skip

    def test_rival_captions_differ_in_one_way_each(self):
        rng = random.Random(0)
        texts = [train_clip.caption_with_rivals(BIRD, rng) for _ in range(50)]
        assert sum(caption != exchanged for caption, exchanged, _, _ in texts) > 30
        assert sum(caption != recoloured for caption, _, recoloured, _ in texts) > 30
        assert sum(caption != elsewhere for caption, _, _, elsewhere in texts) > 20
        for caption, _, _, elsewhere in texts:
            colours = [[word for word in COLOURS if word in text] for text in (caption, elsewhere)]
            assert colours[0] == colours[1] and (caption != elsewhere) == bool(captions.named_scene(caption, BIRD))
        single = BirdAttributes("red", "red", "red")
        caption, exchanged, _, _ = train_clip.caption_with_rivals(single, rng)
        assert caption == exchanged

    @pytest.mark.parametrize(("birds", "batches"), [(200, 30), pytest.param(20_000, 2000, marks=pytest.mark.slow)])
    def test_no_text_or_label_of_a_training_tells_of_a_held_out_triple(self, birds, batches):
        """Colours are read off the texts themselves; 2,000 batches are a whole training."""
        sampler = train_clip.Batches(seed=0, pool_size=birds, batch_size=64, image_size=64)
        full = 0
        for _ in range(batches):
            chosen, texts = sampler.choose()
            for row in sampler.labels[chosen].tolist():
                assert split_of(BirdAttributes(*(COLOURS[label] for label in row[:3]))) == "train"
            for sentence in itertools.chain.from_iterable(text.split(". ") for text in texts):
                named = [{next(filter(None, m)) for m in re.findall(_FULL_PATTERNS[part], sentence)} for part in PARTS]
                if all(len(colours) == 1 for colours in named):
                    full += 1
                    assert split_of(BirdAttributes(*(colours.pop() for colours in named))) == "train", sentence
        assert full > 50 * batches  # most texts name all three colours: something was looked at

    def test_captions_of_the_scene_alone_have_a_rival_for_each_of_its_words(self):
        rng = random.Random(0)
        for _ in range(20):
            caption, *rivals = train_clip.scene_with_rivals(BIRD, rng)
            assert captions.named_scene(caption, BIRD) == ("direction", "background", "perch")
            assert not any(colour in caption for colour in COLOURS)
            left = [set(captions.named_scene(rival, BIRD)) for rival in rivals]
            assert left == [{"background", "perch"}, {"direction", "perch"}, {"direction", "background"}]

    def test_equal_texts_are_no_negatives(self):
        images = torch.nn.functional.normalize(torch.randn(2, 8), dim=-1)
        texts = torch.cat([images, -images])
        distinct = train_clip.contrastive_loss(images, texts, ["a", "b", "c", "d"], 1.0)
        repeated = train_clip.contrastive_loss(images, texts, ["a", "a", "a", "a"], 1.0)
        assert repeated.abs() < 1e-6 < distinct

    def test_labels_teach_every_field(self):
        """A reader that knows all words but those of one field pays for that field alone: log(words) / fields."""
        reader, labels = train_clip.LabelHead(8), torch.zeros(1, len(FIELD_VOCABULARIES), dtype=torch.long)
        images = torch.nn.functional.normalize(torch.ones(1, 8), dim=-1)
        first = 0
        for vocabulary in FIELD_VOCABULARIES.values():
            with torch.no_grad():
                reader.linear.weight.zero_(), reader.linear.bias.zero_()
                starts = torch.tensor(reader.words).cumsum(0) - torch.tensor(reader.words)
                reader.linear.bias[starts] = 100.0  # the first word of each field
                reader.linear.bias[first] = 0.0
            expected = torch.tensor(len(vocabulary)).log() / len(FIELD_VOCABULARIES)
            torch.testing.assert_close(reader(images, labels), expected)
            first += len(vocabulary)

    def test_two_training_steps_teach_by_labels_too_and_give_a_loadable_model(self, tmp_path, monkeypatch):
        class WatchedHead(train_clip.LabelHead):
            gradients = []

            def forward(self, images, labels):
                read = images * 1  # of its own, so that the gradient is that of the labels alone
                read.register_hook(self.gradients.append)
                return super().forward(read, labels)

        monkeypatch.setattr(train_clip, "LabelHead", WatchedHead)
        sizes = {"batch_size": 4, "pool_size": 16, "check_count": 8}
        model, tokenizer, report = train_clip.train_small_clip(max_steps=1, tail_steps=1, **sizes)
        assert len(WatchedHead.gradients) == 2 and all(each.any() for each in WatchedHead.gradients)
        assert report["steps"] == 2 and 0 <= report["swap_accuracy"] <= 1 and 0 <= report["crown_in_caption"] <= 1
        model.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        again = CLIPModel.from_pretrained(tmp_path)
        tokens = CLIPTokenizer.from_pretrained(tmp_path)(["a red bird"], return_tensors="pt")
        assert torch.allclose(again.get_text_features(**tokens)[1], model.get_text_features(**tokens)[1], atol=1e-5)

    def test_one_for_larger_images_starts_as_the_smaller_and_takes_its_size(self):
        model = CLIPModel(small_clip_config(build_tokenizer(["a red bird"]), image_size=32)).eval()
        larger = train_clip.enlarged(model, image_size=64, patch_size=8).eval()
        tokens = torch.tensor([[larger.config.text_config.bos_token_id, 5, larger.config.text_config.eos_token_id]])
        texts = (each.get_text_features(tokens).pooler_output for each in (model, larger))
        assert torch.equal(*texts)
        assert larger.get_image_features(torch.zeros(1, 3, 64, 64)).pooler_output.shape == (1, 128)
        small, large = (each.vision_model.embeddings.position_embedding.weight for each in (model, larger))
        assert len(large) == 65 and torch.equal(small[0], large[0])
        torch.testing.assert_close(large[1:].reshape(8, 8, -1).mean((0, 1)), small[1:].mean(0), atol=2e-3, rtol=0)


class TestScorer:
    @pytest.fixture(scope="class")
    def trained(self):
        return train_scorer.train_scorer(seed=0, steps=2, pool_size=16, batch_size=4, check_count=8)

    def test_two_training_steps_and_a_round_trip(self, trained, tmp_path):
        scorer, report = trained
        assert report["steps"] == 2 and 0 <= report["swap_accuracy"] <= 1
        scorer.save_pretrained(tmp_path)
        again = BirdScorer.from_pretrained(tmp_path)
        images, captions = torch.rand(3, 3, 64, 64) * 2 - 1, ["a red bird", "a bird, a red crown", "Snow!"]
        torch.testing.assert_close(again.embed_images(images), scorer.embed_images(images))
        torch.testing.assert_close(again.encode(captions), scorer.encode(captions))
        assert again.describe()["weights_sha256"] == scorer.describe()["weights_sha256"]
        assert not any(parameter.requires_grad for parameter in again.parameters())

    def test_checks_leave_no_trace_in_the_statistics(self, monkeypatch):
        monkeypatch.setattr(train_scorer, "_CHECK_EVERY", 1)
        sizes = {"seed": 0, "steps": 2, "pool_size": 16, "batch_size": 4}
        one, other = (train_scorer.train_scorer(**sizes, check_count=count)[0] for count in (8, 40))
        assert weights_sha256(one) == weights_sha256(other)

    def test_texts_are_read_word_by_word_and_in_their_order(self, trained):
        encode = trained[0].encode
        texts = encode(["a red bird with blue wings", "a blue bird with red wings", "A RED bird, with blue wings."])
        assert torch.equal(texts[0], texts[2]) and not torch.allclose(texts[0], texts[1])
        torch.testing.assert_close(encode(["a red bird"]), encode(["a red bird", "a bird that is red all over"])[:1])
        assert torch.equal(encode(["zyx"]), encode(["qqq"])) and encode([""]).isfinite().all()

    def test_larger_images_are_read_at_its_own_size(self, trained):
        images = torch.rand(2, 3, 64, 64) * 2 - 1
        larger = images.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        torch.testing.assert_close(trained[0].embed_images(larger), trained[0].embed_images(images))

    def test_the_bundled_one_knows_unseen_birds_and_is_none_of_the_clips(self):
        """On renders of triples that nothing was trained with: two colours exchanged, or another scene."""
        scorer = find_world("synthetic-birds").load_scorer()
        scores = RivalChecks(scorer.encode, scorer.embed_images, count=200, seed=1).measure()
        assert scores["swap_accuracy"] > 0.97 and scores["scene_accuracy"] > 0.93
        assert not {type(module).__name__ for module in scorer.modules()} & {"MultiheadAttention", "CLIPAttention"}


class TestJudge:
    def test_two_training_steps_and_a_round_trip(self, tmp_path):
        judge, accuracy = train_judge(seed=0, steps=2, pool_size=16, check_count=8)
        assert set(accuracy) == set(PARTS)
        images = torch.rand(3, 3, 64, 64) * 2 - 1
        assert [logits.shape for logits in judge(images)] == [(3, 8)] * 3
        judge.save_pretrained(tmp_path)
        for logits, again in zip(judge(images), BirdJudge.from_pretrained(tmp_path)(images), strict=True):
            assert torch.allclose(logits, again, atol=1e-5)
        assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 1_500_000

    def test_predicts_other_fields(self):
        judge, accuracy = train_judge(seed=0, steps=2, pool_size=16, check_count=8, reads=SCENE)
        assert set(accuracy) == set(SCENE)
        images = torch.rand(3, 3, 64, 64) * 2 - 1
        logits = judge(images)
        assert [part.shape for part in logits] == [(3, 2), (3, 4), (3, 4), (3, 2)]
        assert torch.equal(judge.predict(images), torch.stack([part.argmax(1) for part in logits], dim=1))

    def test_refuses_other_sizes(self):
        with pytest.raises(ValueError, match="a multiple of 64"):
            BirdJudge()(torch.zeros(1, 3, 32, 32))


def test_purposes_share_no_render_seed():
    ranges = [sample_birds(purpose, 0, 5, None)[1] for purpose in ("train", "test", "clip", "judge", "judge_check")]
    assert len({seed for seeds in ranges for seed in seeds}) == 25
