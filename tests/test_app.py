"""What `ratlip demo` promises: images that depend on what was asked alone and come again by the command shown, words
that can be exchanged; and of the running app, which needs gradio, its API, its privacy, its two visitors at once."""

import itertools
import json
import shlex
import sys
import threading
from urllib.request import urlopen

import numpy as np
import pytest
import torch
from PIL import Image

from generating import OTHER, PROMPT, seeded
from ratlip_hf.app import drawing
from ratlip_hf.app.drawing import LARGEST_SEED, MOST_IMAGES, Model
from ratlip_hf.cli.main import main
from ratlip_hf.latents import prepare_latents, slerp
from ratlip_hf.utils.errors import UserError
from test_web import EXCHANGES

EVIL = "<img src=x onerror=alert(1)> a red bird"


def pixels(image: Image.Image | str) -> np.ndarray:
    with Image.open(image) if isinstance(image, str) else image as opened:
        return np.asarray(opened.convert("RGB"), dtype=int)


def made(pipe, prompt: str, seed: int, **options) -> np.ndarray:
    return pixels(pipe(prompt, generator=seeded(seed), **options).images[0])


class TestDrawing:
    def test_images_are_the_pipeline_s_one_seed_after_the_other(self, pipe):
        asked = drawing.request(f" {PROMPT}\n\n{OTHER}", 3, 5, 0.7)
        parts = list(drawing.generate(pipe, asked))
        assert [len(part) for part in parts] == [4, 2]
        for (prompt, seed), image in zip(asked.jobs(), itertools.chain(*parts), strict=True):
            assert np.abs(pixels(image) - made(pipe, prompt, seed, truncation=0.7)).max() <= 1
        assert asked.jobs() == [(PROMPT, 5), (PROMPT, 6), (PROMPT, 7), (OTHER, 8), (OTHER, 9), (OTHER, 10)]

    def test_the_command_makes_the_same_images(self, pipe, tmp_path):
        pipe.save_pretrained(tmp_path / "model")
        asked = drawing.request(f"a 'quoted' bird; $HOME\n{OTHER}", 2, 3, 0.5)
        program, *arguments = shlex.split(asked.command(str(tmp_path / "model")))
        assert program == "ratlip" and main([*arguments, "--output_dir", str(tmp_path / "out")]) == 0
        images = itertools.chain(*drawing.generate(pipe, asked))
        for path, image in zip(sorted((tmp_path / "out").glob("0*.png")), images, strict=True):
            assert np.abs(pixels(str(path)) - pixels(image)).max() <= 1

    def test_the_way_between_two_images_begins_and_ends_with_them(self, pipe):
        start, end = drawing.request(PROMPT, 1, 3), drawing.request(OTHER, 1, 4)
        path = [pixels(drawing.between(pipe, start, end, mix)) for mix in (0, 0.5, 1)]
        assert np.abs(path[0] - made(pipe, PROMPT, 3)).max() <= 1
        assert np.abs(path[2] - made(pipe, OTHER, 4)).max() <= 1
        assert (path[1] != path[0]).any() and (path[1] != path[2]).any()

    def test_noise_in_between_lies_on_the_great_circle(self, pipe, monkeypatch):
        taken, size = [], pipe.generator.config.noise_dim
        monkeypatch.setattr(type(pipe), "_generate", lambda self, z, text: taken.append(z) or torch.zeros(1, 3, 8, 8))
        for seed in range(20):
            drawing.between(pipe, drawing.request(PROMPT, 1, seed), drawing.request(PROMPT, 1, seed + 99), 0.3)
            ends = prepare_latents(2, size, [seeded(seed), seeded(seed + 99)])
            torch.testing.assert_close(taken.pop()[0], slerp(*ends, 0.3))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("",), "what the image should show"),
            ((" \n ",), "what the image should show"),
            ((1001 * "a",), "1000 characters"),
            ((PROMPT, 0), "between 1 and"),
            ((PROMPT, MOST_IMAGES + 1), "between 1 and"),
            ((f"{PROMPT}\n{OTHER}", MOST_IMAGES // 2 + 1), "between 1 and"),
            ((PROMPT, 1, -1), "a seed is"),
            ((PROMPT, 1, LARGEST_SEED), "a seed is"),
            ((PROMPT, 1, 0, 0.01), "truncation"),
            ((PROMPT, 1, 0, float("nan")), "truncation"),
        ],
    )
    def test_what_no_model_could_make_is_refused(self, arguments, message):
        with pytest.raises(UserError, match=message):
            drawing.request(*arguments)

    @pytest.mark.parametrize(("prompt", "word", "other", "expected"), EXCHANGES)
    def test_words_are_exchanged_as_on_the_page(self, prompt, word, other, expected):
        found = next(each for each in drawing.words(prompt) if each.text == word)
        assert other in found.others and word.lower() not in found.others
        assert drawing.exchanged(prompt, found, other) == expected

    def test_while_somebody_types_the_history_keeps_the_last_image_only(self):
        history = []
        for text, typed in (("a", True), ("a b", True), ("c", False), ("c d", True), ("c d e", True), ("a b", True)):
            history = drawing.remembered(history, {"command": text, "typed": typed})
        assert [entry["command"] for entry in history] == ["a b", "c"]
        for number in range(2 * drawing.HISTORY):
            history = drawing.remembered(history, {"command": str(number), "typed": False})
        assert len(history) == drawing.HISTORY and history[0]["command"] == str(number)


class TestCommand:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--port", "70000"], "--port"),
            (["--web", "--share"], "is not shared"),
            (["--web", "--model", "a", "b"], "one model"),
        ],
    )
    def test_mistakes_are_one_line(self, arguments, message, capsys):
        assert main(["demo", *arguments]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and message in error

    def test_a_missing_gradio_names_the_extra(self, monkeypatch, capsys):
        monkeypatch.setitem(sys.modules, "gradio", None)
        monkeypatch.delitem(sys.modules, "ratlip_hf.app.interface", raising=False)
        assert main(["demo"]) == 2
        assert "gradio: pip install 'ratlip_hf[demo]'" in capsys.readouterr().err


@pytest.fixture(scope="module")
def running(small_clip, make_generator):
    """(address, pipeline) of a running app with two models; the second is called like no model should be."""
    pytest.importorskip("gradio", reason="gradio is not installed: pip install 'ratlip_hf[demo]'")
    from ratlip_hf import RATLIPPipeline
    from ratlip_hf.app import interface

    parts = small_clip.tokenizer, small_clip.text_encoder, small_clip.image_encoder
    pipe = RATLIPPipeline(*parts, make_generator())
    other = RATLIPPipeline(*parts, make_generator(bridge_blocks=1))
    app, url = interface.serve([Model("tiny", pipe), Model("<b>other</b>", other)])
    yield url, pipe, app
    app.close(verbose=False)


@pytest.fixture
def connect(running):
    """Makes a client, which is a visitor of its own."""
    from gradio_client import Client

    return lambda: Client(running[0], verbose=False)


@pytest.mark.slow
class TestRunning:
    def test_the_api_makes_the_pipeline_s_images_by_its_argument_names(self, running, connect):
        asked = {"prompt": PROMPT, "num_images_per_prompt": 2, "seed": 4, "truncation": 0.8}
        found = connect().predict(**asked, api_name="/generate")
        for seed, item in zip((4, 5), found, strict=True):
            assert np.abs(pixels(item["image"]) - made(running[1], PROMPT, seed, truncation=0.8)).max() <= 1

    def test_every_view_can_be_called(self, running, connect):
        client, pipe = connect(), running[1]
        pair, prompt = client.predict(prompt=PROMPT, word="red", other_word="orange", seed=1, api_name="/exchange")
        assert prompt == PROMPT.replace("a red", "an orange")
        assert np.abs(pixels(pair[1]) - made(pipe, prompt, 1)).max() <= 1
        way = {"prompt": PROMPT, "seed": 1, "to_prompt": OTHER, "to_seed": 2, "mix": 0.5}
        first, _, last = client.predict(**way, api_name="/interpolate")
        assert np.abs(pixels(first) - made(pipe, PROMPT, 1)).max() <= 1
        assert np.abs(pixels(last) - made(pipe, OTHER, 2)).max() <= 1
        here, there = client.predict(prompt=PROMPT, seed=1, api_name="/compare")
        assert np.abs(pixels(here[0]["image"]) - made(pipe, PROMPT, 1)).max() <= 1
        assert (pixels(here[0]["image"]) != pixels(there[0]["image"])).any()

    def test_two_visitors_at_once_get_their_own_images(self, running, connect):
        found, clients = {}, {1: connect(), 1000: connect()}

        def visit(prompt: str, seed: int) -> None:
            options = {"prompt": prompt, "num_images_per_prompt": 3, "api_name": "/generate"}
            found[seed] = [clients[seed].predict(seed=seed + 10 * turn, **options) for turn in range(3)]

        visitors = [threading.Thread(target=visit, args=each) for each in ((PROMPT, 1), (OTHER, 1000))]
        for visitor in visitors:
            visitor.start()
        for visitor in visitors:
            visitor.join()
        for prompt, start in ((PROMPT, 1), (OTHER, 1000)):
            for turn, images in enumerate(found[start]):
                for index, item in enumerate(images):
                    expected = made(running[1], prompt, start + 10 * turn + index)
                    assert np.abs(pixels(item["image"]) - expected).max() <= 1

    def test_what_visitors_send_comes_back_escaped_and_changes_nothing(self, running, connect):
        from gradio_client.exceptions import AppError

        client = connect()
        with pytest.raises(AppError, match="1000 characters"):
            client.predict(prompt=EVIL + 1000 * "x", api_name="/generate")
        with pytest.raises(AppError, match="not in the list"):
            client.predict(prompt=PROMPT, model="/etc", api_name="/generate")
        with pytest.raises(AppError, match="choose a word"):
            client.predict(prompt=PROMPT, word=EVIL, other_word="blue", api_name="/exchange")

    def test_it_keeps_to_this_machine(self, running):
        url, _, app = running
        assert url.startswith("http://127.0.0.1:") and app.server_name == "127.0.0.1"
        assert app.share is False and app.analytics_enabled is False
        assert 0 < app._queue.max_size < 100

    def test_it_is_a_tool_by_mcp(self, running):
        with urlopen(f"{running[0]}gradio_api/mcp/schema") as answer:
            (tool,) = (tool for tool in json.load(answer) if tool["name"].endswith("generate"))
        assert tool["description"].startswith("Generate images from text")
        wanted = {"prompt", "num_images_per_prompt", "seed", "truncation", "model"}
        assert tool["inputSchema"]["properties"].keys() == wanted
