"""What benchmarks share: their figures, fair timing, and the record of what they ran on (`ribray bench` prints it).

A benchmark is a file of this folder with a function ``run() -> dict``. It returns

    settings  name -> what was measured, as JSON values
    figures   name -> `figure`, or `not_measured`
    notes     sentences on how the figures came about, the baseline among them

and may take ``full: bool``, which asks for the part that takes minutes. It runs on one thread of torch, or on as many
as its file says in ``THREADS``. Ratios are taken between runs that took turns (`interleave`).
"""

import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

from ribray import __version__
from ribray.machine import git_commit, processor

if TYPE_CHECKING:
    from rich.console import RenderableType

RECORDED_PACKAGES = ("torch", "torchvision", "ray", "numpy", "pillow")


def measure(benchmark: ModuleType, name: str, root: Path, **options: Any) -> dict[str, Any]:
    """Run a benchmark and return its result with versions, machine, git commit of the checkout ``root``, and date."""
    threads = torch.get_num_threads()
    torch.set_num_threads(getattr(benchmark, "THREADS", 1))
    try:
        before = circumstances(root)
        return {"benchmark": name, **benchmark.run(**options), **before}
    finally:
        torch.set_num_threads(threads)


def circumstances(root: Path) -> dict[str, Any]:
    """Return what figures are recorded with: versions, machine, git commit of the checkout ``root``, and date."""
    installed = {package: version for package in RECORDED_PACKAGES if (version := _version(package)) is not None}
    return {
        "versions": {"ribray": __version__, **installed},
        "machine": _machine(),
        "commit": git_commit(root),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def figure(
    values: float | Sequence[float], unit: str, *, at_least: float | None = None, at_most: float | None = None
) -> dict[str, Any]:
    """Return one figure of a benchmark: the median of what was measured, its range, and what is required of it.

    Args:
        values: one value, or one per run.
        unit: such as "s" or "MB"; "" for a plain number.
        at_least: the lowest value that will do.
        at_most: the highest value that will do.
    """
    runs = [float(values)] if isinstance(values, int | float) else [float(value) for value in values]
    value = statistics.median(runs)
    met = (at_least is None or value >= at_least) and (at_most is None or value <= at_most)
    required = _required(at_least, at_most, met)
    return {"value": value, "unit": unit, "min": min(runs), "max": max(runs), "runs": len(runs), "required": required}


def not_measured(
    unit: str, reason: str, *, at_least: float | None = None, at_most: float | None = None
) -> dict[str, Any]:
    """Return a figure that this machine cannot give.

    Args:
        unit: such as "s" or "MB"; "" for a plain number.
        reason: a sentence that says what is missing and which command measures it.
        at_least: the lowest value that will do.
        at_most: the highest value that will do.
    """
    required = _required(at_least, at_most, None)
    return {"value": None, "unit": unit, "min": None, "max": None, "runs": 0, "required": required, "reason": reason}


def _required(at_least: float | None, at_most: float | None, met: bool | None) -> dict[str, Any] | None:
    return {"at_least": at_least, "at_most": at_most, "met": met} if (at_least, at_most) != (None, None) else None


def interleave(ways: Mapping[str, Callable[[], Any]], rounds: int = 5, warm_up: int = 1) -> dict[str, list[float]]:
    """Return the seconds of several ways to do something; each round runs every way once, one after the other.

    What else the machine does then slows all of them alike. What a way has queued on a GPU counts as its time.

    Args:
        ways: name -> what to time.
        rounds: how often each is timed.
        warm_up: rounds before, which do not count.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(warm_up + rounds):
        for name, way in ways.items():
            start = now()
            way()
            seconds[name].append(now() - start)
    return {name: found[warm_up:] for name, found in seconds.items()}


def now() -> float:
    """Return the time when all that was queued on a GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Return round by round what was measured of one way over the same of another."""
    return [one / other for one, other in zip(above, below, strict=True)]


def in_processes(
    function: Callable[..., Any], count: int = 1, *, threads: int | None = None, **options: Any
) -> list[Any]:
    """Return what a function of a benchmark's file returns in so many processes of their own, at the same time.

    Args:
        function: returns what JSON holds; its file calls `serve` where it is the program.
        count: processes.
        threads: of torch, of each; default: as many as here.
        options: what it is called with, of which JSON holds all.
    """
    command = [sys.executable, function.__code__.co_filename, function.__name__, json.dumps(options)]
    path = os.pathsep.join([str(Path(__file__).parent.parent), *sys.path[1:]])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": str(threads or torch.get_num_threads())}
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(count)]
    printed = [process.communicate()[0] for process in running]
    for process in running:
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
    return [json.loads(text.splitlines()[-1]) for text in printed]


def serve(names: Mapping[str, Any]) -> None:
    """Call the function that `in_processes` asks for, and print what it returns."""
    print(json.dumps(names[sys.argv[1]](**json.loads(sys.argv[2]))))


def table(result: Mapping[str, Any]) -> "RenderableType":
    """Return the figures of `measure` for the terminal, with the notes and the machine below."""
    from rich.console import Group  # not all that is measured needs it
    from rich.markup import escape
    from rich.table import Table

    rows = Table(box=None, pad_edge=False)
    rows.add_column(result["benchmark"])
    rows.add_column("median", justify="right")
    rows.add_column("min … max", justify="right")
    rows.add_column("runs", justify="right")
    rows.add_column("required")
    missing: dict[str, list[str]] = {}
    for name, found in result["figures"].items():
        if found["value"] is None:
            missing.setdefault(found["reason"], []).append(name)
        median, span, runs, required = cells(found)
        for word, style in (("met", "green"), ("missed", "bold red")):
            required = required.replace(word, f"[{style}]{word}[/{style}]")
        rows.add_row(escape(name), median, span, runs, required)
    notes = [*result["notes"], *(f"Not measured: {', '.join(names)}. {reason}" for reason, names in missing.items())]
    return Group(rows, "", *map(escape, notes), f"[dim]{escape(where(result))}[/dim]")


def cells(found: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """Return a figure's columns: median, range, number of runs, and what is required of it."""
    several = found["runs"] > 1
    return (
        "not measured" if found["value"] is None else f"{_number(found['value'])} {found['unit']}".rstrip(),
        f"{_number(found['min'])} … {_number(found['max'])}" if several else "",
        str(found["runs"]) if several else "",
        _requirement(found["required"]),
    )


def where(result: Mapping[str, Any]) -> str:
    """Return in a line on what a result was measured."""
    machine, threads = result["machine"], result["machine"]["threads"]
    gpus = [", ".join(machine["gpus"]), f"CUDA {machine['cuda']}"] if machine["gpus"] else []
    parts = [
        machine["cpu"],
        f"{machine['cores']} cores",
        f"{threads} thread{'s' if threads > 1 else ''} used",
        f"load {machine['load']} before",
        f"{machine['memory_gb']} GB",
        *gpus,
    ]
    packages = ", ".join(f"{package} {version}" for package, version in result["versions"].items())
    return f"{', '.join(parts)}; {packages}; commit {result['commit'] or 'unknown'}; {result['date']}"


def _requirement(required: Mapping[str, Any] | None) -> str:
    if required is None:
        return ""
    bounds = [(sign, required[key]) for sign, key in (("≥", "at_least"), ("≤", "at_most")) if required[key] is not None]
    text = ", ".join(f"{sign} {_number(bound)}" for sign, bound in bounds)
    if required["met"] is None:
        return f"{text} not known"
    return f"{text} {'met' if required['met'] else 'missed'}"


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _machine() -> dict[str, Any]:
    gpus = Counter(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))
    return {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),  # of the minute before: what else kept the cores busy
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "gpus": [f"{count} × {name}" for name, count in gpus.items()],
        "cuda": torch.version.cuda if gpus else None,
    }
