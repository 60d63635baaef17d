"""The app of `ratlip demo` in a real browser, as a visitor uses it: `make test-web`. Every test fails on a request
that leaves this machine and on an error in the console."""

import shlex
import shutil
from collections.abc import Iterator

import pytest

from generating import OTHER, PROMPT
from ratlip_hf.app.drawing import Model

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: see `make test-web`")
pytest.importorskip("gradio", reason="gradio is not installed: see `make test-web`")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.web,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: see `make test-web`"),
]
EVIL = "<img src=x onerror=alert(1)> a red bird"
COMMAND = "#command textarea"


@pytest.fixture(scope="module")
def url(torch_pipe) -> Iterator[str]:
    from ratlip_hf.app import interface

    app, url = interface.serve([Model("tiny", torch_pipe), Model("<b>other</b>", torch_pipe)])
    yield url
    app.close(verbose=False)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def open_app(browser, url):
    contexts, complaints = [], []

    def open_app(**options):
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(120_000)
        local = (url, "blob:", "data:")
        page.on("request", lambda request: request.url.startswith(local) or complaints.append(request.url))
        page.on("console", lambda message: message.type == "error" and complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(url)
        page.wait_for_selector(".picture img")
        return page

    yield open_app
    for context in contexts:
        context.close()
    assert not complaints


def words_of(page) -> list[str]:
    """The command below the image."""
    return shlex.split(page.locator(COMMAND).input_value())


def type_prompt(page, text: str) -> None:
    page.get_by_label("What should it show?").fill(text)
    quoted = shlex.quote(text)
    page.wait_for_function(
        "([command, text]) => document.querySelector(command).value.startsWith(text)",
        arg=[COMMAND, f"ratlip generate {quoted} "],
    )


def picture(page) -> str:
    return page.locator(".picture img").first.get_attribute("src")


def test_typing_and_another_seed_make_other_images_and_the_history_brings_them_back(open_app):
    page = open_app()
    type_prompt(page, PROMPT)
    first = picture(page)
    type_prompt(page, OTHER)
    page.wait_for_function("(old) => document.querySelector('.picture img').src !== old", arg=first)
    second = picture(page)
    page.get_by_role("button", name="Another").click()
    page.wait_for_function("(old) => document.querySelector('.picture img').src !== old", arg=second)
    assert words_of(page)[words_of(page).index("--seed") + 1] != "7"
    page.get_by_role("tab", name="History").click()
    page.get_by_text(f"{OTHER}, seed 7").click()
    page.wait_for_function("(old) => document.querySelector('.picture img').src === old", arg=second)


def test_a_word_is_exchanged_and_the_prompt_can_be_kept(open_app):
    page = open_app()
    type_prompt(page, PROMPT)
    page.get_by_role("tab", name="Exchange a word").click()
    page.get_by_label("red", exact=True).check()
    page.get_by_label("orange", exact=True).check()
    page.wait_for_function(
        "(text) => [...document.querySelectorAll('textarea')].some((box) => box.value === text)",
        arg=PROMPT.replace("a red", "an orange"),
    )
    page.get_by_role("button", name="Go on with this prompt").click()
    page.wait_for_function("(text) => document.querySelector('textarea').value.includes(text)", arg="an orange bird")


def test_many_images_come_with_their_seeds(open_app):
    page = open_app()
    page.get_by_role("tab", name="Many at once").click()
    page.get_by_label("Prompts, one per line").fill(f"{EVIL}\n{OTHER}")
    page.get_by_role("button", name="Generate").click()
    page.get_by_text(f"{OTHER}, seed 7").wait_for()
    assert page.get_by_text(f"{EVIL}, seed 0").is_visible()
    assert page.locator("img[src=x]").count() == 0


def test_what_is_typed_is_never_markup(open_app):
    page = open_app()
    page.on("dialog", lambda dialog: pytest.fail(dialog.message))
    type_prompt(page, EVIL)
    for tab in ("Exchange a word", "Two models", "History"):
        page.get_by_role("tab", name=tab).click()
        page.wait_for_timeout(500)
    assert page.get_by_text(EVIL).count() and page.locator("img[src=x], b").count() == 0


@pytest.mark.parametrize("width", [320, 375])
def test_narrow_windows_hide_nothing(open_app, width):
    page = open_app(viewport={"width": width, "height": 800}, color_scheme="dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
