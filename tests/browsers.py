"""A headless Chromium for the tests of a page: the machine's own, or that of `playwright install chromium`."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Playwright, sync_playwright

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
# Root has no sandbox. A test's camera shows a green picture and a clock, and is allowed at once.
OPTIONS = (
    "--no-sandbox",
    "--disable-background-networking",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
)


def chromium(playwright: Playwright) -> str:
    """The program; skips where there is none, but for CI, which installs one and says so."""
    found = [path for name in NAMES if (path := shutil.which(name))] + [playwright.chromium.executable_path]
    if not Path(found[0]).exists():
        reason = "needs Chromium: apt-get install chromium, or playwright install chromium"
        (pytest.fail if os.environ.get("TSM_TRITON_CHROMIUM") == "required" else pytest.skip)(reason)
    return found[0]


@contextmanager
def headless_chromium() -> Iterator[Browser]:
    """While it runs, asyncio's loop of this thread is Playwright's."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(playwright), args=OPTIONS)
        try:
            yield browser
        finally:
            browser.close()
