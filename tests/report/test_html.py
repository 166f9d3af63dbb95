"""Pages of runs and sweeps: nothing from outside, no markup out of data, every section told."""

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest

from ribray.evaluation.published import MEAN, table
from ribray.report.html import jpeg_uri, render_run, render_sweep
from ribray.runs.metrics import RunMetrics
from tests.pages import (
    CLASSES,
    MARKUP,
    SCRIPT,
    empty_page,
    ledger,
    log,
    metrics,
    page_of_two_methods,
    picture,
    published_page,
    refinement,
    run_page,
    sweep_page,
    trial,
)

RUN_SECTIONS = ["results", "seed", "classes", "gallery", "losses", "throughput", "failures", "configuration"]
SWEEP_SECTIONS = ["study", "results", "trials", "failures", "configuration"]
VOID = {"meta", "link", "img", "br", "hr", "input", "wbr"}


class Page(HTMLParser):
    """A page taken apart: tags with their attributes, text, and what was not closed."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.open, self.text, self.scripts = [], [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        inside = self.open[-1] if self.open else ""
        if inside != "style":
            (self.scripts if inside == "script" else self.text).append(data)

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def run_html():
    return render_run(run_page())


@pytest.fixture(scope="module")
def sweep_html():
    return render_sweep(sweep_page())


@pytest.fixture(params=["run", "sweep"])
def html(request, run_html, sweep_html):
    return {"run": run_html, "sweep": sweep_html}[request.param]


def test_a_page_asks_for_nothing_but_itself(html):
    for tag, attributes in Page(html).tags:
        for name in ("src", "href", "srcset", "data", "action", "poster", "background"):
            if (address := attributes.get(name)) is not None:
                assert address.startswith(("data:", "#")), (tag, address)
    assert not re.search(r"url\((?!#)|@import|@font-face", html)


def test_a_policy_forbids_everything_else_and_lets_the_one_script_through(html):
    page = Page(html)
    policy = next(each["content"] for each in page.all("meta") if each.get("http-equiv") == "Content-Security-Policy")
    (script,) = page.scripts
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy
    assert len(page.all("script")) == 1


def test_every_element_is_closed_and_no_id_is_used_twice(html):
    page = Page(html)
    assert page.open == []
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [each["href"][1:] for each in [*page.all("a"), *page.all("use")]]
    assert set(targets) <= set(ids)


def test_text_from_data_is_text(run_html, sweep_html):
    for html in (run_html, sweep_html):
        page = Page(html)
        assert not [each for each in page.all("img") if each["src"] == "x"]
        assert not [attributes for _, attributes in page.tags if any(name.startswith("on") for name in attributes)]
        assert not page.all("b")
        assert MARKUP in page.words
    assert SCRIPT in Page(run_html).words
    assert SCRIPT not in run_html


def test_every_section_of_a_run_is_filled(run_html):
    page = Page(run_html)
    assert [each["id"] for each in page.all("section")] == RUN_SECTIONS
    assert not [attributes for _, attributes in page.tags if attributes.get("class") == "empty"]
    assert len(page.all("svg")) == 1 + 2 + 3 + 2
    assert len(page.all("img")) == 2 * (4 + 10) + 3 * 4


def test_a_run_that_has_done_nothing_says_so_in_every_section():
    page = Page(render_run(empty_page()))
    assert [each["id"] for each in page.all("section")] == RUN_SECTIONS
    assert not page.all("svg")
    assert "No image failed." in page.words
    empty = [attributes for _, attributes in page.tags if attributes.get("class") == "empty"]
    assert len(empty) >= 6


def test_remarks_stand_where_something_is_missing():
    without = metrics() | {"timing": {}}
    del without["seed"]["rib"]["by_step"]
    remarks = {"steps": "no steps were kept", "pace": "nothing was timed", "refinement": "no losses in the maps"}
    text = Page(
        render_run(run_page(metrics=RunMetrics(**without), refinements=[refinement(losses=None)], remarks=remarks))
    ).words
    assert "no steps were kept" in text
    assert "nothing was timed" in text
    assert "no losses in the maps" in text


def test_numbers_stand_with_their_intervals_and_beside_the_papers(run_html):
    words = Page(run_html).words
    assert "56.0 54.8 to 57.5" in words
    assert "56.44 ± 0.05" in words
    assert "67.83" in words
    assert "only the direction can be compared" in words


def test_the_pace_is_extrapolated_as_such_and_names_the_machine(run_html):
    words = Page(run_html).words
    assert "1,464 images at this rate extrapolated 1,464 15 min 00 s" in words
    assert "a laptop" in words
    assert "four Quadro RTX 8000" in words
    assert "32 min" in words
    assert "43 min" in words


def test_a_run_on_an_unrecorded_machine_says_so():
    assert "machine not recorded" in Page(render_run(run_page(machine=None))).words


@pytest.mark.parametrize(("name", "beside"), [("S2", "BBAM"), ("S3", "the paper's IRN")])
def test_runs_on_a_published_data_set_stand_beside_what_is_published_of_it(name, beside):
    words = Page(render_run(published_page(name))).words
    assert beside in words
    assert "only the direction" not in words
    assert all(column in words for column in table(name).columns if column != MEAN)  # every class, however many


def test_class_tables_can_be_sorted_by_numbers(run_html):
    page = Page(run_html)
    tables = [each for each in page.all("table") if each.get("class") == "sortable"]
    assert len(tables) == 3  # seed, segmentation, failures
    assert len(page.all("button")) == sum(each.get("aria-sort") == "none" for each in page.all("th"))
    values = [float(each["data-value"]) for each in page.all("td") if "data-value" in each]
    assert 59.0 in values


def test_losses_that_are_not_finite_leave_a_gap():
    lines = [*log(10, 1.0, 0.5), {"epoch": 0, "step": 10, "loss": None, "lr": 0.1}]
    page = Page(render_run(run_page(logs={"IRN": {"RIB": lines}, "Segmentation": {"RIB": lines[-1:]}})))
    assert len(page.all("svg")) == 1 + 2 + 1 + 2


def test_a_run_on_plain_cams_alone_has_no_gain():
    found = metrics()
    only = {"seed": {"cam": found["seed"]["cam"]}, **found["variants"]["cam"]}
    page = Page(render_run(run_page(metrics=RunMetrics(**only), own="cam")))
    assert "gain" not in page.words


def test_every_section_of_a_sweep_is_filled(sweep_html):
    page = Page(sweep_html)
    assert [each["id"] for each in page.all("section")] == SWEEP_SECTIONS
    assert not [attributes for _, attributes in page.tags if attributes.get("class") == "empty"]
    words = page.words
    assert "56.1 ± 0.14" in words
    assert "published" in words
    assert "batch_size=30,seed=1" in words
    for wanted in ("failed", "finished", "50.0 s"):
        assert wanted in words


def test_a_sweep_without_trials_or_with_waiting_ones_has_a_page():
    text = Page(render_sweep(sweep_page(ledger=ledger(trials=[]), plots={}, failures={}))).words
    assert "There are no trials yet." in text
    assert "No trial and no image failed." in text
    waiting = trial(1, 0, None, status="waiting", metrics={}, seconds=None)
    assert "waiting" in Page(render_sweep(sweep_page(ledger=ledger(trials=[waiting])))).words


def test_class_names_are_as_given(run_html):
    for name in CLASSES:
        assert name in Page(run_html).words


def test_pictures_are_jpegs():
    content = base64.b64decode(jpeg_uri(picture(1)).removeprefix("data:image/jpeg;base64,"))
    assert content.startswith(b"\xff\xd8")


def test_methods_stand_beside_each_other_on_one_page():
    page = Page(render_run(page_of_two_methods()))
    words = page.words
    assert "1464 of 1464 refinements, AdvCAM took all 27 steps." in words
    assert "600 of 1463 refinements, RIB took all 10 steps; stopped early" in words
    assert "Refinement, AdvCAM 1.22 images/s" in words
    for wanted in (
        "AdvCAM, 47.3 after step 27",
        "RIB, 55.8 after step 10",
        "Loss of the refinement, AdvCAM",
        "L_AdvCAM",
        "AdvCAM: the map over the steps",
    ):
        assert wanted in words, wanted
    assert "seed, best threshold 36.0 34.8 to 37.5 47.0 45.8 to 48.5 +11.0 11.0 to 11.0 56.0 54.8 to 57.5 +9.0" in words
    assert "this run, AdvCAM, measured" in words
    assert "the authors of AdvCAM, four GPUs" in words
    assert {"bar-0", "bar-1", "bar-2"} <= {word for cell in page.all("td") for word in cell["class"].split()}


def test_a_run_tells_how_its_refinements_ended():
    words = Page(render_run(run_page())).words
    assert (
        "600 of 1463 refinements took all 10 steps; stopped early: explosion test 800 of 1463, target loss 63." in words
    )
    assert "863 of 1463 images did not get through their 10 steps" in words
    counts = metrics()
    counts["refine"]["stop_reasons"] = {"finished": 3, "target_loss": 0, "explosion": 0}
    words = Page(render_run(run_page(metrics=RunMetrics(**counts)))).words
    assert "3 of 3 refinements took all 10 steps." in words
    assert "stopped early" not in words
    del counts["refine"]["stop_reasons"]  # of a run that was made before they were counted
    assert "took all" not in Page(render_run(run_page(metrics=RunMetrics(**counts)))).words
