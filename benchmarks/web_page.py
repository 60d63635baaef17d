"""How soon the page of `ratlip export web` is usable and what an image takes, in headless Chromium on one thread.
`python benchmarks/web_page.py FOLDER` prints the numbers of docs/web.md; `--screenshots DIR` keeps what it looks like.
Needs playwright and chromium, as `make test-web` installs them."""

import argparse
import datetime
import os
import shlex
import shutil
import statistics
import sys
import threading
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from ratlip_hf.web.server import make_server

IMAGES = 40
LOOKS = {
    "desktop": {"viewport": {"width": 1280, "height": 900}},
    "narrow": {"viewport": {"width": 375, "height": 800}},
    "dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
}


def open_page(browser: Browser, url: str, **options) -> Page:
    page = browser.new_context(**options).new_page()
    page.set_default_timeout(120_000)
    page.goto(url)
    page.wait_for_selector("body[data-shown]")
    return page


def measure(browser: Browser, url: str) -> None:
    page = open_page(browser, url)
    first, ready = page.evaluate("[performance.now(), Number(document.body.dataset.ready)]")
    processes = browser.new_browser_cdp_session().send("SystemInfo.getProcessInfo")["processInfo"]
    processor = max(process["cpuTime"] for process in processes if process["type"] == "renderer")
    print(f"model ready after {ready / 1e3:.1f} s, first image after {first / 1e3:.1f} s")
    print(f"until then the tab took {processor:.1f} s of processor time")
    page.wait_for_timeout(5000)  # until what the page makes besides is made
    times = []
    for seed in range(100, 100 + IMAGES):
        page.get_by_label("Seed", exact=True).fill(str(seed))
        page.wait_for_function("(seed) => document.body.dataset.shown.endsWith(`seed=${seed}`)", arg=seed)
        times.append(int(page.locator("#speed").inner_text().split()[-2]))
    print(f"{IMAGES} images: median {statistics.median(times):.0f} ms, fastest {min(times)}, slowest {max(times)}")


def take_screenshots(browser: Browser, url: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, options in LOOKS.items():
        page = open_page(browser, url, **options)
        if name != "desktop":
            page.get_by_label("colour red").select_option("blue")
        page.wait_for_timeout(8000)
        page.screenshot(path=folder / f"{name}.png", full_page=True)
        page.context.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--screenshots", type=Path)
    options = parser.parse_args()
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"{datetime.date.today()}  python {shlex.join(sys.argv)}  ({os.cpu_count()} cores, load {load})")
    with make_server(options.folder) as server, sync_playwright() as playwright:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/"
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        measure(browser, url)
        if options.screenshots:
            take_screenshots(browser, url, options.screenshots)
        browser.close()
        server.shutdown()


if __name__ == "__main__":
    main()
