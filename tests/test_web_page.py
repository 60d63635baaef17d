"""The page of `ratlip export web` in a real browser, with the bundled model, as a visitor uses it: `make test-web`.
Every test fails on a request that leaves the server, on an error in the console and on a violated security policy."""

import base64
import io
import json
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ratlip_hf import RATLIPPipeline, bundled
from ratlip_hf.web.export import export_web
from ratlip_hf.web.server import make_server

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: see `make test-web`")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.web,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: see `make test-web`"),
]
PATIENCE = 120_000  # milliseconds; slow machines are no failure
RED, BLUE = (f"a {colour} bird with black wings, on a rock, in the snow, facing right" for colour in ("red", "blue"))


@pytest.fixture(scope="module")
def pipe() -> RATLIPPipeline:
    return RATLIPPipeline.from_pretrained(bundled.model_dir())


@pytest.fixture(scope="module")
def url(pipe, tmp_path_factory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("web") / "site"
    export_web(pipe, folder, bundled.model_dir())
    with make_server(folder) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def open_page(browser, url):
    """Opens the page, at a link's end if one is given, and waits for its first image."""
    contexts, complaints = [], []

    def open_page(hash: str = "", init: str = "", wait: bool = True, **options):
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda request: request.url.startswith((url, "blob:")) or complaints.append(request.url))
        page.on("console", lambda message: message.type in ("error", "warning") and complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.add_init_script(init)
        page.goto(url + hash)
        if wait:
            page.wait_for_selector("body[data-shown]")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not complaints


def shown(page, prompt: str | None = None, seed: int | None = None) -> np.ndarray:
    """The image on the page, [64, 64, 3], once it is that of the prompt and seed."""
    until(
        page,
        """([prompt, seed]) => {
          const shown = new URLSearchParams((document.body.dataset.shown ?? "").slice(1));
          return [prompt ?? shown.get("prompt"), `${seed ?? shown.get("seed")}`].join() ===
            [shown.get("prompt"), shown.get("seed")].join();
        }""",
        [prompt, seed],
    )
    return pixels(page, "#now canvas")


def until(page, function: str, argument=None) -> None:
    """Wait for a JavaScript function to be true; a mere expression would need eval, which the page forbids."""
    page.wait_for_function(function, arg=argument)


def pixels(page, canvas: str) -> np.ndarray:
    url = page.locator(canvas).first.evaluate("canvas => canvas.image.toDataURL('image/png')")
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as image:
        return np.asarray(image.convert("RGB"), dtype=int)


def drawn(page, canvas: str) -> np.ndarray:
    until(page, "canvas => Boolean(canvas.image)", page.locator(canvas).first.element_handle())
    return pixels(page, canvas)


def made(pipe: RATLIPPipeline, prompt: str, seed: int, **options) -> np.ndarray:
    image = pipe(prompt, generator=torch.Generator().manual_seed(seed), **options).images[0]
    return np.asarray(image, dtype=int)


def test_typing_makes_the_image_that_python_makes(open_page, pipe):
    page = open_page()
    page.get_by_label("What should it show?").fill("")
    page.keyboard.type(RED)
    assert np.abs(shown(page, RED, 0) - made(pipe, RED, 0)).max() <= 1
    page.get_by_label("Seed", exact=True).fill("7")
    assert np.abs(shown(page, RED, 7) - made(pipe, RED, 7)).max() <= 1
    assert json.dumps(RED) in page.locator("#python").inner_text()
    names = {}
    exec(page.locator("#python").inner_text(), names)
    assert np.abs(shown(page) - np.asarray(names["image"], dtype=int)).max() <= 1


def test_another_word_changes_the_bird_and_shows_before_and_after(open_page):
    page = open_page(f"#prompt={RED}&seed=3")
    before = shown(page, RED, 3)
    page.get_by_label("colour red").focus()
    page.keyboard.press("b")  # blue, by the keyboard alone
    page.keyboard.press("Enter")
    after = shown(page, BLUE, 3)
    assert page.get_by_label("What should it show?").input_value() == BLUE
    assert (drawn(page, "#before canvas") == before).all()
    assert "red" in page.locator("#before").inner_text() and "blue" in page.locator("#now").inner_text()
    change = np.abs(after - before).mean(axis=2)
    inside = np.zeros((64, 64), dtype=bool)
    inside[16:48, 16:48] = True
    assert change[inside].mean() > 3 * change[~inside].mean()
    assert page.evaluate("document.activeElement.ariaLabel").startswith("colour blue")
    page.get_by_role("button", name="Close comparison").click()
    assert page.locator("#before").is_hidden()


def test_a_place_is_added(open_page):
    page = open_page("#prompt=a+red+bird&seed=1")
    page.get_by_label("add a place").select_option("in the snow")
    shown(page, "a red bird, in the snow", 1)
    assert page.get_by_label("place in the snow").count() == 1


def test_another_seed_and_the_grid_of_eight(open_page, pipe):
    page = open_page(f"#prompt={RED}&seed=5")
    before = shown(page, RED, 5)
    until(page, "() => [...document.querySelectorAll('#grid canvas')].every((canvas) => canvas.image)")
    eight = [pixels(page, f"#grid button:nth-child({i + 1}) canvas") for i in range(8)]
    assert len({image.tobytes() for image in eight}) == 8
    page.get_by_role("button", name="show seed 8", exact=True).click()
    assert (shown(page, RED, 8) == eight[2]).all()
    assert np.abs(eight[2] - made(pipe, RED, 8)).max() <= 1
    page.get_by_role("button", name="Another", exact=True).click()
    until(page, "() => !document.body.dataset.shown.includes('seed=8')")
    assert (shown(page) != before).any()


def test_truncation_is_the_pipeline_s(open_page, pipe):
    page = open_page(f"#prompt={RED}&seed=5")
    page.get_by_label("Variety").fill("0.5")
    until(page, "() => document.body.dataset.shown.includes('truncation=0.5')")
    assert np.abs(shown(page) - made(pipe, RED, 5, truncation=0.5)).max() <= 1


@pytest.mark.parametrize(("kind", "other"), [("two texts", BLUE), ("two seeds", "9")])
def test_the_slider_goes_from_one_end_to_the_other(open_page, kind, other):
    page = open_page(f"#prompt={RED}&seed=5")
    page.get_by_label(kind).check()
    page.get_by_label("and the other").fill(other)
    until(page, "(other) => document.querySelector('#to-end canvas').ariaLabel?.includes(other)", other)
    images = []
    for mix in ("0", "0.5", "1"):
        page.get_by_label("How far from the first").fill(mix)
        until(page, "(mix) => document.body.dataset.middle === mix", mix)
        images.append(pixels(page, "#middle canvas"))
    assert (images[0] == shown(page, RED, 5)).all()
    expected = drawn(page, "#to-end canvas")
    assert np.abs(images[2] - expected).max() <= 1
    assert np.abs(images[1] - images[0]).mean() > 1 and np.abs(images[1] - images[2]).mean() > 1
    names = {}
    page.get_by_label("How far from the first").fill("0.5")
    page.locator("summary").click()
    exec(page.locator("#python-between").inner_text(), names)
    assert np.abs(images[1] - np.asarray(names["image"], dtype=int)).max() <= 1


def test_a_shared_link_shows_the_same_image(open_page):
    page = open_page("#prompt=junk&seed=-4&truncation=none")
    assert page.get_by_label("Seed", exact=True).input_value() == "0"
    page.get_by_label("What should it show?").fill(f'{RED} & 100 % "new"')
    page.get_by_label("Seed", exact=True).fill("11")
    image = shown(page, f'{RED} & 100 % "new"', 11)
    until(page, "() => location.hash.includes('seed=11')")
    again = open_page("#" + page.url.partition("#")[2])
    assert (shown(again, f'{RED} & 100 % "new"', 11) == image).all()
    again.evaluate("location.hash = '#prompt=a+white+bird&seed=2'")
    shown(again, "a white bird", 2)
    assert again.get_by_label("What should it show?").input_value() == "a white bird"


def test_the_png_is_the_image(open_page):
    page = open_page(f"#prompt={RED}&seed=5")
    image = shown(page, RED, 5)
    with page.expect_download() as started:
        page.get_by_role("button", name="Save PNG").click()
    assert re.fullmatch(r"a-red-bird[a-z-]*-5\.png", started.value.suggested_filename)
    with Image.open(io.BytesIO(Path(started.value.path()).read_bytes())) as saved:
        assert (np.asarray(saved.convert("RGB"), dtype=int) == image).all()


@pytest.mark.parametrize("width", [320, 375, 768])
def test_narrow_windows_hide_nothing(open_page, width):
    page = open_page(f"#prompt={RED}", viewport={"width": width, "height": 700}, color_scheme="dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    sizes = """[...document.querySelectorAll("button, select, #prompt, #seed, #to")]
      .filter((element) => element.offsetParent).map((element) => element.offsetHeight)"""
    assert min(page.evaluate(sizes)) >= 24


def test_everything_that_can_be_operated_has_a_name_and_is_announced(open_page):
    page = open_page(f"#prompt={RED}&seed=5")
    until(page, "() => document.getElementById('status').textContent.includes('seed 5')")
    unnamed = """[...document.querySelectorAll("button, select, input, textarea, canvas[role=img]")].filter((e) =>
      !(e.ariaLabel || e.labels?.length || e.textContent.trim()) && e.offsetParent)"""
    assert page.evaluate(f"{unnamed}.map((e) => e.outerHTML)") == []
    assert page.locator("#status").get_attribute("aria-live") == "polite"


def test_a_prompt_that_is_too_long_is_told(open_page):
    page = open_page("#prompt=" + 60 * "bird+")
    shown(page, seed=0)
    assert page.get_by_text("too long for the model").is_visible()


def test_what_is_typed_is_never_markup(open_page):
    evil = "<img src=x onerror=alert(1)> a red bird"
    page = open_page("#" + f"prompt={evil}")
    shown(page, evil)
    until(page, "() => document.querySelector('#from-end figcaption').textContent.includes('<img')")
    assert page.locator("img").count() == 0


@pytest.mark.parametrize(
    ("init", "message"),
    [("delete globalThis.WebAssembly", "WebAssembly"), ("delete globalThis.DecompressionStream", "too old")],
)
def test_a_browser_that_cannot_is_told_why(open_page, init, message):
    page = open_page(init=init, wait=False)
    assert message in page.get_by_role("alert").inner_text()
    assert page.locator("#progress").is_hidden()
