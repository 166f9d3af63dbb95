"""Reports in headless Chromium: on a wide screen and on a telephone, light and dark, and sorted by hand and key."""

import asyncio
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ribray.report.html import render_run, render_sweep
from tests.pages import SCRIPT, empty_page, published_page, run_page, sweep_page

pytest.importorskip("aiohttp", reason="no aiohttp to talk to a browser with")
from tests.browser import CHROMIUM, Tab, tab

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

WIDE, TELEPHONE = 1280, 390
COLUMN = """(table, column) => [...document.querySelectorAll("table.sortable")[table].tBodies[0].rows].map(
    row => row.cells[column].firstChild?.textContent.trim() ?? "")"""
HEADING = """document.querySelectorAll("table.sortable")[0].tHead.rows[0].cells[1]"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    content = {
        "run": render_run(run_page()),
        "of 81 classes": render_run(published_page("S3")),
        "empty": render_run(empty_page()),
        "sweep": render_sweep(sweep_page()),
    }
    for name, html in content.items():
        (folder / f"{name}.html").write_text(html, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in content}


def in_browser(folder: Path, look):
    """Run ``look``, a coroutine of a tab, in a browser of its own."""

    async def run():
        async with tab(folder / "profile") as opened:
            await look(opened)

    asyncio.run(run())


def test_the_browser_notices_what_a_page_does_wrong(pages, tmp_path):
    """So that its silence means something."""
    html = pages["run"].read_text(encoding="utf-8")
    wrong = '<p style="width: 500px">wide</p><img src="http://127.0.0.1:9/a.png"><script>alert(1)</script></body>'
    (tmp_path / "wrong.html").write_text(html.replace("</body>", wrong), encoding="utf-8")

    async def look(opened: Tab) -> None:
        await opened.open(tmp_path / "wrong.html", TELEPHONE)
        assert await opened.ask("document.documentElement.scrollWidth") > TELEPHONE
        assert len([error for error in opened.errors if "Content Security Policy" in error]) == 2
        assert "http://127.0.0.1:9/a.png" in opened.requests

    in_browser(tmp_path, look)


def test_pages_fit_their_screen_say_nothing_and_ask_for_nothing(pages, tmp_path):
    async def look(opened: Tab) -> None:
        for name, page in pages.items():
            for width in (WIDE, TELEPHONE):
                for dark in (False, True):
                    opened.errors.clear()
                    opened.requests.clear()
                    await opened.open(page, width, dark)
                    case = (name, width, dark)
                    assert await opened.ask("innerWidth") == width, case
                    assert await opened.ask("document.documentElement.scrollWidth") <= width, case
                    assert opened.errors == [], case
                    assert [each for each in opened.requests if not each.startswith("data:")] == [page.as_uri()], case
                    broken = "[...document.images].filter(image => !image.complete || !image.naturalWidth).length"
                    assert await opened.ask(broken) == 0, case

    in_browser(tmp_path, look)


def test_a_page_is_light_or_dark_as_the_reader_likes_it(pages, tmp_path):
    async def look(opened: Tab) -> None:
        shades = {}
        for dark in (False, True):
            await opened.open(pages["run"], TELEPHONE, dark)
            with Image.open(io.BytesIO(await opened.picture())) as picture:
                shades[dark] = np.median(np.asarray(picture.convert("L")))
        assert shades[False] > 230
        assert shades[True] < 40

    in_browser(tmp_path, look)


def test_headings_sort_by_click_and_by_key_and_back_again(pages, tmp_path):
    async def look(opened: Tab) -> None:
        await opened.open(pages["run"], WIDE)
        before = await opened.ask(f"({COLUMN})(0, 1)")
        assert before == ["36.0", "39.0", "42.0", "–", "48.0"]
        await opened.ask(f"{HEADING}.querySelector('button').click()")
        assert await opened.ask(f"({COLUMN})(0, 1)") == ["48.0", "42.0", "39.0", "36.0", "–"]
        assert await opened.ask(f"{HEADING}.getAttribute('aria-sort')") == "descending"
        await opened.ask(f"{HEADING}.querySelector('button').focus()")
        await opened.press("Enter")
        assert await opened.ask(f"({COLUMN})(0, 1)") == ["36.0", "39.0", "42.0", "48.0", "–"]
        assert await opened.ask(f"{HEADING}.getAttribute('aria-sort')") == "ascending"
        await opened.press("Enter")
        assert await opened.ask(f"({COLUMN})(0, 1)") == before
        names = "document.querySelectorAll('table.sortable')[0].tHead.rows[0].cells[0].querySelector('button').click()"
        await opened.ask(names)
        assert SCRIPT in await opened.ask(f"({COLUMN})(0, 0)")
        mean = "document.querySelectorAll('table.sortable')[0].tBodies[1].rows[0].cells[0].textContent.trim()"
        assert await opened.ask(mean) == "mean IoU"
        assert opened.errors == []

    in_browser(tmp_path, look)


def test_wide_tables_scroll_within_themselves_on_a_telephone(pages, tmp_path):
    async def look(opened: Tab) -> None:
        await opened.open(pages["run"], TELEPHONE)
        wider = (
            """[...document.querySelectorAll(".scroll")].filter(each => each.scrollWidth > each.clientWidth).length"""
        )
        assert await opened.ask(wider) > 0
        outside = """[...document.querySelectorAll(".scroll, .panel, .picture, .card")].filter(
            each => each.getBoundingClientRect().right > innerWidth).length"""
        assert await opened.ask(outside) == 0

    in_browser(tmp_path, look)
