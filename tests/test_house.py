"""The bounds of the house: how long modules and functions are, and where tests lie."""

import re

from tests.conftest import ROOT
from tools.lines import LONGEST_FUNCTION, LONGEST_MODULE, long_functions, long_modules

PACKAGE, TESTS = ROOT / "ribray", ROOT / "tests"
TOO_LONG: set[str] = set()
"""Modules and functions over the bounds. None may be added; what has become shorter leaves."""
BESIDE_THE_ROOMS = {"benchmarks", "faults"}
OF_A_RUN = ("maps/", "metrics/", "base/", "variants/")
OF_THE_WHOLE = {
    "deploy",
    "examples",
    "extending",
    "house",
    "internals",
    "nothing_runs_from_data",
    "object_store",
    "packaging",
    "quickstart",
    "real_photographs",
}


def test_modules_and_functions_keep_their_bounds():
    too_long = {**long_modules(PACKAGE), **long_functions(PACKAGE)}
    bounds = f"a module has at most {LONGEST_MODULE} lines, a function {LONGEST_FUNCTION}"
    assert set(too_long) == TOO_LONG, f"{bounds}: {too_long}"


def test_the_files_that_the_architecture_names_are_there():
    named = set(re.findall(r"`([\w/]+\.\w+)`", (ROOT / "docs/architecture.md").read_text(encoding="utf-8")))
    files = {name for name in named if "/" in name and not name.startswith(OF_A_RUN)}
    assert len(files) > 10
    assert {name for name in files if not any((folder / name).is_file() for folder in (PACKAGE, ROOT))} == set()


def test_the_architecture_names_every_room():
    rooms = {file.stem for file in PACKAGE.iterdir() if file.suffix == ".py" or (file / "__init__.py").exists()}
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    assert {room for room in rooms if not room.startswith("__") and not re.search(rf"\b{room}\b", text)} == set()


def test_tests_lie_in_the_rooms_that_they_test():
    rooms = {folder.name for folder in PACKAGE.iterdir() if (folder / "__init__.py").exists()}
    folders = {file.parent.name for file in TESTS.glob("*/test_*.py")}
    assert folders <= rooms | BESIDE_THE_ROOMS
    modules = {file.stem for file in PACKAGE.glob("*.py")}
    assert {file.stem.removeprefix("test_") for file in TESTS.glob("test_*.py")} <= modules | OF_THE_WHOLE
