"""Reports in headless Chromium: on a wide screen and on a telephone, light and dark, and sorted by hand and key."""

import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

from ribray.report.html import render_run, render_sweep
from tests.pages import SCRIPT, empty_page, page_of_two_methods, published_page, run_page, sweep_page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
REQUIRED = os.environ.get("RIBRAY_REQUIRE_BROWSER") == "1"
"""A test without a browser fails."""
pytestmark = pytest.mark.skipif(CHROMIUM is None and not REQUIRED, reason="no Chromium here (apt-get install chromium)")

WIDE, TELEPHONE = 1280, 390
PHONE = 600
"""Narrower screens are telephones."""
BROKEN = "[...document.images].filter(image => !image.complete || !image.naturalWidth).length"
WIDTH = "document.documentElement.scrollWidth"


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    content = {
        "run": render_run(run_page()),
        "of 81 classes": render_run(published_page("S3")),
        "of two methods": render_run(page_of_two_methods()),
        "empty": render_run(empty_page()),
        "sweep": render_sweep(sweep_page()),
    }
    for name, html in content.items():
        (folder / f"{name}.html").write_text(html, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in content}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert CHROMIUM is not None, (
        "no Chromium on this machine, and RIBRAY_REQUIRE_BROWSER is 1: apt-get install chromium"
    )
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Opened:
    """A file on a screen of so many CSS pixels, with what it asked for and complained of since it was opened."""

    def __init__(self, browser: Browser, file: Path, width: int, dark: bool = False):
        self.errors: list[str] = []
        """What the console holds of errors and warnings, and exceptions of scripts."""
        self.requests: list[str] = []
        self.page: Page = browser.new_page(
            viewport={"width": width, "height": 900},
            is_mobile=width < PHONE,
            color_scheme="dark" if dark else "light",
        )
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(file.as_uri())

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning", "assert"):
            self.errors.append(message.text)

    def __enter__(self) -> "Opened":
        return self

    def __exit__(self, *_: object) -> None:
        self.page.close()


def test_the_browser_notices_what_a_page_does_wrong(browser, pages, tmp_path):
    """So that its silence means something."""
    html = pages["run"].read_text(encoding="utf-8")
    wrong = '<p style="width: 500px">wide</p><img src="http://127.0.0.1:9/a.png"><script>alert(1)</script></body>'
    (tmp_path / "wrong.html").write_text(html.replace("</body>", wrong), encoding="utf-8")
    with Opened(browser, tmp_path / "wrong.html", TELEPHONE) as opened:
        assert opened.page.evaluate(WIDTH) > TELEPHONE
        assert len([error for error in opened.errors if "Content Security Policy" in error]) == 2
        assert "http://127.0.0.1:9/a.png" in opened.requests


def test_pages_fit_their_screen_say_nothing_and_ask_for_nothing(browser, pages):
    cases = [(name, width, dark) for name in pages for width in (WIDE, TELEPHONE) for dark in (False, True)]
    for case in cases:
        name, width, dark = case
        with Opened(browser, pages[name], width, dark) as opened:
            assert opened.page.evaluate("innerWidth") == width, case
            assert opened.page.evaluate(WIDTH) <= width, case
            assert opened.errors == [], case
            assert [url for url in opened.requests if not url.startswith("data:")] == [pages[name].as_uri()], case
            assert opened.page.evaluate(BROKEN) == 0, case


def test_a_page_is_light_or_dark_as_the_reader_likes_it(browser, pages):
    shades = {}
    for dark in (False, True):
        with (
            Opened(browser, pages["run"], TELEPHONE, dark) as opened,
            Image.open(io.BytesIO(opened.page.screenshot(full_page=True))) as picture,
        ):
            shades[dark] = np.median(np.asarray(picture.convert("L")))
    assert shades[False] > 230
    assert shades[True] < 40


def test_headings_sort_by_click_and_by_key_and_back_again(browser, pages):
    with Opened(browser, pages["run"], WIDE) as opened:
        table = opened.page.locator("table.sortable").first
        heading = table.locator("thead tr").first.locator("th, td").nth(1)

        def column(place: int) -> list[str]:
            text = "(rows, place) => rows.map(row => row.cells[place].firstChild?.textContent.trim() ?? '')"
            return table.locator("tbody").first.locator("tr").evaluate_all(text, place)

        before = column(1)
        assert before == ["36.0", "39.0", "42.0", "–", "48.0"]
        heading.get_by_role("button").click()
        assert column(1) == ["48.0", "42.0", "39.0", "36.0", "–"]
        assert heading.get_attribute("aria-sort") == "descending"
        heading.get_by_role("button").press("Enter")
        assert column(1) == ["36.0", "39.0", "42.0", "48.0", "–"]
        assert heading.get_attribute("aria-sort") == "ascending"
        opened.page.keyboard.press("Enter")
        assert column(1) == before
        table.locator("thead tr").first.get_by_role("button").first.click()
        assert SCRIPT in column(0)
        assert table.locator("tbody").nth(1).locator("tr").first.locator("th, td").first.inner_text() == "mean IoU"
        assert opened.errors == []


def test_wide_tables_scroll_within_themselves_on_a_telephone(browser, pages):
    with Opened(browser, pages["run"], TELEPHONE) as opened:
        wider = "boxes => boxes.filter(each => each.scrollWidth > each.clientWidth).length"
        assert opened.page.locator(".scroll").evaluate_all(wider) > 0
        outside = "boxes => boxes.filter(each => each.getBoundingClientRect().right > innerWidth).length"
        assert opened.page.locator(".scroll, .panel, .picture, .card").evaluate_all(outside) == 0
