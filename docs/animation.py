"""Records README's animation: a visitor types, exchanges words and asks for others, on the page of the bundled model,
in headless Chromium. `python docs/animation.py` writes docs/images/page.webp; needs playwright and chromium, as
`make test-web` installs them, and the packages of the extra "web"."""

import io
import shutil
import tempfile
import threading
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from ratlip_hf import RATLIPPipeline, bundled
from ratlip_hf.web.export import export_web
from ratlip_hf.web.server import make_server

OUT = Path(__file__).parent / "images" / "page.webp"
SIZE = {"width": 880, "height": 600}
PROMPT = "a small red bird with black wings"
PLACE = ", in the snow"
WORDS = (("colour red", "blue"), ("colour black", "yellow"), ("place in the snow", "at sunset"))


class Recorder:
    """Screenshots of a page, each with the time that it is shown."""

    def __init__(self, page: Page):
        self.page, self.frames, self.times = page, [], []

    def take(self, milliseconds: int) -> None:
        self.page.evaluate("window.scrollTo(0, 0)")
        shot = Image.open(io.BytesIO(self.page.screenshot())).convert("RGB")
        self.frames.append(shot.resize((shot.width * 3 // 4, shot.height * 3 // 4), Image.Resampling.LANCZOS))
        self.times.append(milliseconds)

    def wait_for(self, prompt: str) -> None:
        """Until the page shows the image of this prompt."""
        self.page.wait_for_function(
            "(prompt) => new URLSearchParams(document.body.dataset.shown.slice(1)).get('prompt') === prompt",
            arg=prompt,
        )
        self.page.wait_for_timeout(300)

    def type(self, text: str, before: str = "") -> None:
        """Word by word, with the image that each of them gives."""
        for word in text.split(" "):
            self.page.keyboard.type(word)
            before += word
            self.wait_for(before)
            self.take(350)
            self.page.keyboard.type(" ")
            before += " "
        self.page.keyboard.press("Backspace")


def visit(page: Page) -> Recorder:
    recorder = Recorder(page)
    box = page.get_by_label("What should it show?")
    box.fill("")
    recorder.type(PROMPT)
    recorder.take(900)
    page.keyboard.type(",")
    recorder.type(PLACE[1:], PROMPT + ",")
    recorder.take(1200)
    prompt = PROMPT + PLACE
    for label, word in WORDS:
        page.get_by_label(label).first.select_option(word)
        prompt = prompt.replace(label.partition(" ")[2], word)
        recorder.wait_for(prompt)
        recorder.take(1400)
    page.get_by_role("button", name="Close comparison").click()
    for _ in range(4):
        shown = page.evaluate("document.body.dataset.shown")
        page.get_by_role("button", name="Another", exact=True).click()
        page.wait_for_function("(shown) => document.body.dataset.shown !== shown", arg=shown)
        page.wait_for_timeout(300)
        recorder.take(700)
    return recorder


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        folder = Path(temporary) / "page"
        export_web(RATLIPPipeline.from_pretrained(bundled.model_dir()), folder, bundled.model_dir())
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        with make_server(folder) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            page = browser.new_page(viewport=SIZE)
            page.set_default_timeout(120_000)
            page.goto(f"http://127.0.0.1:{server.server_port}/")
            page.wait_for_selector("body[data-shown]")
            recorder = visit(page)
            browser.close()
            server.shutdown()
    first, *rest = recorder.frames
    first.save(OUT, save_all=True, append_images=rest, duration=recorder.times, loop=0, quality=70, method=6)
    print(f"{OUT}: {len(recorder.frames)} frames, {OUT.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
