"""``ribray bench``: finds a benchmark of this checkout and runs it (``benchmarks/harness.py`` says what one is)."""

import contextlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import RenderableType

from ribray.errors import UsageError
from ribray.runs.records import ROOT

FOLDER, HARNESS = "benchmarks", "harness"


def run_benchmark(name: str, full: bool = False) -> tuple[dict[str, Any], RenderableType]:
    """Return a benchmark's result, and how it is shown; ``full`` asks for the part that takes minutes."""
    benchmark = load(name)
    if full and "full" not in inspect.signature(benchmark.run).parameters:
        raise UsageError(f"The benchmark {name} has no part that --full would add; leave it out.")
    with _modules_of(ROOT / FOLDER):
        harness = importlib.import_module(HARNESS)
        result = harness.measure(benchmark, name.replace("_", "-"), ROOT, **({"full": True} if full else {}))
    return result, harness.table(result)


def load(name: str) -> ModuleType:
    """Return a benchmark's module; hyphens in its name stand for underscores of the file's."""
    known = known_benchmarks()
    file = known.get(name.replace("_", "-"))
    if file is None:
        raise UsageError(f"There is no benchmark {name}; there are: {', '.join(known)}.")
    spec = importlib.util.spec_from_file_location(f"_benchmark_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with _modules_of(file.parent):
        spec.loader.exec_module(module)
    return module


def known_benchmarks() -> dict[str, Path]:
    """Return the benchmarks of the checkout that ribray runs from: name -> file."""
    folder = ROOT / FOLDER
    if not (ROOT / "pyproject.toml").is_file() or not folder.is_dir():
        raise UsageError(
            f"Benchmarks are part of a checkout, and {ROOT} is none; clone the repository and install it "
            "with `pip install --editable`."
        )
    files = [file for file in sorted(folder.glob("*.py")) if "\ndef run(" in file.read_text(encoding="utf-8")]
    return {file.stem.replace("_", "-"): file for file in files}


@contextlib.contextmanager
def _modules_of(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
