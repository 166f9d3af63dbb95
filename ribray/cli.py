"""The ``ribray`` command: reads its arguments, calls one function, prints.

Exit codes: 0 done; 1 done but some images failed, or a stage failed; 2 wrong usage, configuration or data, or no way to
a Ray cluster, said before anything is done; 3 the Ray cluster died under the work, and the same command continues; 130
stopped by the user.
"""

import logging
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ribray import __version__, supervisor
from ribray.config import find_recipe, load_experiment, shipped_recipes, to_yaml
from ribray.errors import (
    EXIT_FAILURES,
    EXIT_LOST,
    EXIT_STOPPED,
    EXIT_USAGE,
    ClusterLostError,
    RibrayError,
    StageError,
    UsageError,
)

DEFAULT_OUT = "runs"
ONE_SIGNAL_SECONDS = 0.3
"""Signals within so short a time are one: it came to all processes of a group, and was passed on besides."""

app = typer.Typer(
    help="Weakly supervised segmentation with RIB, on Ray: from image-level labels to pixel masks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
console = Console()
errors = Console(stderr=True)

RecipeArgument = Annotated[str, typer.Argument(help="A shipped recipe or the path of a YAML file.", metavar="RECIPE")]


def _location(text: str) -> Path:
    """Return a path or a URL of the command line."""
    from ribray import storage

    location = storage.path(text)
    storage.require_reachable(location)
    return location


def _debug(is_wanted: bool) -> bool:
    """Show the tracebacks of a pool's workers, or not."""
    logging.getLogger("ribray.cluster.pool").setLevel(logging.DEBUG if is_wanted else logging.NOTSET)
    return is_wanted


DebugOption = Annotated[
    bool,
    typer.Option("--debug", help="Show the traceback of errors that nobody expects of an image.", callback=_debug),
]
OutOption = Annotated[
    Path | None,
    typer.Option("--out", help="Run directory or URL (default: runs/RECIPE).", metavar="DIR", parser=_location),
]
BreakLockOption = Annotated[
    bool,
    typer.Option("--break-lock", help="Take the place of a process on an object store that no longer exists."),
]
RunArgument = Annotated[Path, typer.Argument(help="Directory of a run.", metavar="RUN", parser=_location)]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Change one configuration key.", metavar="KEY=VALUE")
]


def main(arguments: list[str] | None = None, supervised: bool | None = None) -> None:
    """Run the command line; every expected error is one sentence.

    Args:
        arguments: by default those of this process.
        supervised: whether the work is done in a child process (see `ribray.supervisor`); by default where the
            arguments are this process's.
    """
    try:
        if arguments is None if supervised is None else supervised:
            supervisor.supervise(_say)
        app(args=arguments, standalone_mode=True)
    except UsageError as error:
        _say_error(error)
        sys.exit(EXIT_USAGE)
    except ClusterLostError as error:
        _say_error(error)
        sys.exit(EXIT_LOST)
    except RibrayError as error:
        _say_error(error)
        sys.exit(EXIT_FAILURES)
    except OSError as error:
        if error.filename is None and error.strerror is None:
            raise
        place = f"{error.filename}: " if error.filename is not None else ""
        _say_error(RibrayError(f"{place}{error.strerror}."))
        sys.exit(EXIT_FAILURES)
    except _Dropped as dropped:
        _say(str(dropped))
        sys.exit(EXIT_STOPPED)


class _Dropped(BaseException):
    """The user asked twice to stop. (The command line parser keeps KeyboardInterrupt to itself.)"""


def _say(sentence: str) -> None:
    errors.print(sentence, highlight=False, markup=False, soft_wrap=True)


def _say_error(error: Exception) -> None:
    errors.print(f"[bold red]error:[/bold red] {escape(str(error))}", highlight=False, soft_wrap=True)


@app.callback(invoke_without_command=True)
def _top(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        console.print(f"ribray {__version__}", highlight=False)
        raise typer.Exit


@app.command()
def quickstart(
    out: OutOption = None,
    settings: SetOption = None,
    break_lock: BreakLockOption = False,
    debug: DebugOption = False,
) -> None:
    """Show RIB on a drawn world: minutes on a laptop, no download."""
    from ribray.commands.report import write_report

    request = _request("quickstart", out, settings, break_lock=break_lock)
    finished = _run(request)
    if not finished.stopped:
        _say_place("report", write_report(request.directory))
    _exit(finished.stopped, bool(finished.failures))


@app.command()
def run(
    recipe: RecipeArgument,
    out: OutOption = None,
    settings: SetOption = None,
    stages: Annotated[
        str | None, typer.Option(help="Stages to run, comma-separated (default: all).", metavar="A,B")
    ] = None,
    redo: Annotated[str | None, typer.Option(help="Make this stage, and what follows, again.", metavar="STAGE")] = None,
    fork: Annotated[
        Path | None,
        typer.Option(
            help="Go on in a new run DIR that reuses what still fits of the one at --out.",
            metavar="DIR",
            parser=_location,
        ),
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Say what would be done, and do nothing.")] = False,
    break_lock: BreakLockOption = False,
    debug: DebugOption = False,
) -> None:
    """Run the stages of a recipe; the same command continues what was stopped."""
    request = _request(recipe, out, settings, stages, redo, fork, break_lock)
    if plan:
        _plan(request)
        return
    finished = _run(request)
    _exit(finished.stopped, bool(finished.failures))


@app.command()
def status(directory: Annotated[Path, typer.Argument(metavar="DIR", parser=_location)]) -> None:
    """Say how far a run, or a sweep, is."""
    from ribray.commands.run import read_status
    from ribray.report.ledger import read_ledger
    from ribray.report.summaries import status_table
    from ribray.report.sweep_results import results_table
    from ribray.runs.directory import LEDGER_FILE

    if (directory / LEDGER_FILE).is_file():
        console.print(results_table(read_ledger(directory / LEDGER_FILE)))
        return
    is_held, statuses = read_status(directory)
    console.print(status_table(statuses))
    console.print("A process is working on it." if is_held else "No process is working on it.")


@app.command()
def sweep(
    file: Annotated[str, typer.Argument(help="A shipped sweep or the path of a YAML file.", metavar="SWEEP")],
    base: Annotated[
        str | None,
        typer.Option(
            help="Recipe (or directory of a finished run) in place of the sweep's own base.", metavar="RECIPE"
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Directory of the sweep (default: runs/SWEEP).", metavar="DIR", parser=_location),
    ] = None,
    settings: SetOption = None,
    break_lock: BreakLockOption = False,
) -> None:
    """Run a study on Ray Tune: trials, repeats, a table with mean and deviation; the same command continues."""
    from ribray.commands.report import write_report
    from ribray.commands.sweep import SweepRequest
    from ribray.commands.sweep import sweep as run_sweep
    from ribray.report.sweep_results import results_table
    from ribray.sweep_file import find_sweep, read_sweep, title_of, with_base

    source = find_sweep(file)
    definition = read_sweep(source) if base is None else with_base(read_sweep(source), base)
    location = _output(out, source.stem)
    request = SweepRequest(definition, source, title_of(source), location, tuple(settings or ()), break_lock)
    result = run_sweep(request, console, _stop_on_signals())
    console.print("", results_table(result.ledger), "", sep="\n")
    for place in result.files:
        _say_place("table" if place.suffix in (".md", ".csv") else "picture", place)
    if result.sync_command is not None:
        _say_place("W&B", result.sync_command)
    if not result.stopped:
        _say_place("report", write_report(location))
    _exit(result.stopped, result.failed)


@app.command()
def report(
    directory: Annotated[
        Path, typer.Argument(help="Directory of a run or of a sweep.", metavar="RUN_OR_SWEEP", parser=_location)
    ],
) -> None:
    """Write one HTML file that shows a run, or a sweep: numbers, curves, pictures."""
    from ribray.commands.report import write_report

    _say_place("report", write_report(directory))


@app.command("config")
def print_config(recipe: RecipeArgument, settings: SetOption = None) -> None:
    """Print the resolved configuration of a recipe."""
    sys.stdout.write(to_yaml(load_experiment(recipe, settings or [])))


@app.command()
def recipes() -> None:
    """List the shipped recipes."""
    _list_shipped(shipped_recipes())


@app.command()
def sweeps() -> None:
    """List the shipped sweeps."""
    from ribray.sweep_file import shipped_sweeps

    _list_shipped(shipped_sweeps())


def _list_shipped(files: dict[str, Path]) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, file in files.items():
        first_line = file.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        table.add_row(f"[bold]{name}[/bold]", escape(first_line))
    console.print(table)


@app.command()
def verify(
    directory: Annotated[Path, typer.Argument(help="Folder of recorded cases (npz).", metavar="DIR")],
    only: Annotated[str | None, typer.Option(help="Only cases whose name begins so.", metavar="PREFIX")] = None,
) -> None:
    """Run recorded cases through this installation and compare, quantity by quantity."""
    from ribray.commands.verify import verify as run_checks
    from ribray.report.summaries import check_table

    checks = run_checks(directory, only)
    console.print(check_table(checks))
    off = sum(not check.ok for check in checks)
    console.print(f"{len(checks) - off} of {len(checks)} quantities within tolerance", highlight=False)
    if off:
        raise typer.Exit(EXIT_FAILURES)


@app.command()
def check(
    recipe: RecipeArgument,
    settings: SetOption = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for check.json (not a run directory; default: here).", metavar="DIR"),
    ] = None,
) -> None:
    """Look at every image and mask of a recipe's data; exit code 1 where something is wrong with one."""
    from ribray import storage
    from ribray.commands.check import check_data, write_report
    from ribray.report.summaries import data_report
    from ribray.runs.directory import require_outside

    experiment = load_experiment(recipe, settings or [])
    require_outside(storage.absolute(out or Path()))
    report = check_data(experiment, console, _stop_on_signals())
    location = write_report(report, experiment, out or Path())
    console.print("", data_report(report), "", sep="\n")
    console.print(f"[dim]All of it:[/dim] {escape(str(location))}", highlight=False, soft_wrap=True)
    _exit(report.stopped, bool(report.findings))


@app.command("import-maps")
def import_maps(
    source: Annotated[
        Path,
        typer.Argument(
            help="Folder with ID.npz (an array per class) or ID/CLASS.npy.", metavar="DIR", parser=_location
        ),
    ],
    recipe: Annotated[str, typer.Option(help="A shipped recipe or the path of a YAML file.", metavar="RECIPE")],
    out: OutOption = None,
    settings: SetOption = None,
    break_lock: BreakLockOption = False,
    debug: DebugOption = False,
) -> None:
    """Take localization maps made elsewhere into a run; go on with `ribray run RECIPE --stages seed`."""
    from ribray.commands.run import run_import
    from ribray.report.summaries import run_summary
    from ribray.runs.metrics import RunMetrics
    from ribray.stages import STAGES

    request = _request(recipe, out, settings, "refine", break_lock=break_lock)

    def tell(result: Any) -> None:
        failures = [vars(failure) for failure in result.failures]
        console.print("", run_summary(RunMetrics(**result.metrics), STAGES, request.directory, failures=failures))

    try:
        result = run_import(request, source, console, _stop_on_signals())
    except StageError as error:
        tell(error.result)
        raise
    tell(result)
    _exit(result.stopped, bool(result.failures))


@app.command()
def export(
    directory: RunArgument,
    format: Annotated[str, typer.Option("--format", help="coco or voc-server.", metavar="FORMAT")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="File to write (default: in exports/ of the run).", metavar="FILE", parser=_location
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Images of this split (default: the one the masks are of).", metavar="NAME")
    ] = None,
    what: Annotated[
        str | None,
        typer.Option(help="pseudo or predictions (default: pseudo; for voc-server predictions).", metavar="MASKS"),
    ] = None,
) -> None:
    """Write a run's masks for other programs: COCO instances, or the archive that VOC's server judges."""
    from ribray.commands.export import export_masks

    exported = export_masks(directory, format, console, _stop_on_signals(), out=out, split=split, what=what)
    if exported is not None:
        without = f"; {exported.missing} of the split have no mask" if exported.missing else ""
        objects = "" if exported.annotations is None else f", {exported.annotations} annotations"
        text = f"{exported.images} images{objects}{without}: {escape(str(exported.file))}"
        console.print(text, highlight=False, soft_wrap=True)
    _exit(exported is None, False)


@app.command()
def predict(
    directory: RunArgument,
    images: Annotated[
        Path, typer.Argument(help="An image, or a folder of images.", metavar="IMAGES", parser=_location)
    ],
    out: Annotated[
        Path, typer.Option("--out", help="Folder for masks/ and overlays/.", metavar="DIR", parser=_location)
    ],
    workers: Annotated[
        int, typer.Option(min=0, help="Actors of a pool on Ray (default: this process does the work).", metavar="N")
    ] = 0,
    debug: DebugOption = False,
) -> None:
    """Predict the masks of any photographs with a run's segmentation network."""
    from ribray.commands.predict import predict_images
    from ribray.report.summaries import failure_lines

    predicted = predict_images(directory, images, out, console, _stop_on_signals(), workers)
    if predicted.failures:
        console.print("", failure_lines([vars(failure) for failure in predicted.failures]), sep="\n")
    failed = f", {len(predicted.failures)} failed (failures.jsonl)" if predicted.failures else ""
    text = f"{predicted.done} of {predicted.images} images{failed}: {escape(str(predicted.folder))}"
    console.print(text, highlight=False, soft_wrap=True)
    _exit(predicted.stopped, bool(predicted.failures))


@app.command("map")
def map_command(
    photographs: Annotated[
        list[Path],
        typer.Argument(help="Photographs; they serve each other as extras.", metavar="PHOTO", parser=_location),
    ],
    network: Annotated[
        str,
        typer.Option(help="timm/NAME, a name of torchvision's such as resnet50, or a run's directory.", metavar="NAME"),
    ] = "timm/tf_efficientnet_lite0",
    weights: Annotated[str, typer.Option(help="A file, imagenet or none.", metavar="FILE")] = "imagenet",
    classes: Annotated[
        str | None,
        typer.Option(help="Names or indices, for all photographs (default: what the network sees).", metavar="A,B"),
    ] = None,
    extras: Annotated[
        Path | None, typer.Option(help="Folder of other photographs, labelled or not.", metavar="DIR", parser=_location)
    ] = None,
    settings: SetOption = None,
    out: Annotated[
        Path, typer.Option("--out", help="Folder for NAME.png and NAME.npz.", metavar="DIR", parser=_location)
    ] = Path("maps"),
    long_side: Annotated[
        int, typer.Option(help="Scale larger photographs down to so many pixels; 0: do not.", metavar="N")
    ] = 500,
) -> None:
    """Make the maps of photographs by a pretrained network or a run's classifier; nothing is trained."""
    from ribray.commands.map import MapRequest, map_photographs

    request = MapRequest(photographs, network, weights, classes, extras, settings or (), out, long_side)
    mapped = map_photographs(request, console, _stop_on_signals("the photograph in flight is", "Stopped."))
    if mapped.stopped:
        _say(f"Stopped: {mapped.done} of {mapped.photographs} photographs are done.")
        raise typer.Exit(EXIT_STOPPED)
    _exit(False, bool(mapped.failed))


@app.command()
def bench(
    name: Annotated[
        str, typer.Argument(help="Such as random-walk; benchmarks/README.md describes them.", metavar="NAME")
    ],
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the result there too.", metavar="FILE")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Also run the part that takes minutes.")] = False,
) -> None:
    """Run a benchmark of this checkout."""
    from ribray import storage
    from ribray.commands.bench import run_benchmark

    if json_file is not None and (json_file.is_dir() or not json_file.absolute().parent.is_dir()):
        raise UsageError(f"--json {json_file} is to be a file in a folder that exists.")
    result, table = run_benchmark(name, full)
    if json_file is not None:
        storage.write_json(json_file, result)
    console.print(table, highlight=False)


# --- running -----------------------------------------------------------------------------------------------------


def _request(
    recipe: str,
    out: Path | None,
    settings: list[str] | None,
    stages: str | None = None,
    redo: str | None = None,
    fork: Path | None = None,
    break_lock: bool = False,
) -> Any:
    from ribray.commands.run import Request, parse_stages

    location = _output(out, find_recipe(recipe).stem)
    if supervisor.is_restarted():
        # What it names was forgotten, and the lock broken, the first time; what has been made since then stays.
        redo, break_lock = None, False
    experiment = load_experiment(recipe, settings or [])
    return Request(experiment, recipe, location, parse_stages(stages), redo, fork, break_lock)


def _output(out: Path | None, name: str) -> Path:
    """Return the directory to work in.

    Raises:
        UsageError: it is relative, in a job.
    """
    from ribray.cluster.session import inside_job

    location = out or Path(DEFAULT_OUT) / name
    if inside_job() and not location.is_absolute():
        raise UsageError(
            f"--out {location} is relative, and a job runs in a temporary copy of the working directory; "
            "give an absolute path on storage that every node shares."
        )
    return location


def _run(request: Any) -> Any:
    from ribray.commands.run import run_chain

    try:
        result = run_chain(request, console, _stop_on_signals())
    except StageError as error:  # what the other stages have come to is told all the same
        _print_run(request, error.result)
        raise
    _print_run(request, result)
    return result


def _print_run(request: Any, result: Any) -> None:
    from ribray.report.summaries import run_summary
    from ribray.runs.metrics import RunMetrics
    from ribray.stages import STAGES

    metrics = RunMetrics(**result.metrics)
    console.print()
    _print_results(request, metrics)
    failures = [vars(failure) for failure in result.failures]
    if metrics.timing or failures:
        console.print(run_summary(metrics, STAGES, request.directory, failures=failures))
    for figure in result.figures:
        _say_place("picture", figure)
    for command in result.sync_commands:  # on one line, to be copied
        _say_place("W&B", command)


def _say_place(label: str, place: Path | str) -> None:
    console.print(f"{label:<8} {place}", highlight=False, markup=False, soft_wrap=True)


def _print_results(request: Any, metrics: Any) -> None:
    """Print the tables of those stages that were asked for."""
    from ribray.report.tables import chain_table, evaluation_tables, seed_table
    from ribray.runs.run import Run
    from ribray.stages import MASK_STAGES, STAGES

    experiment, own = request.experiment, Run.read(request.directory).variant or "rib"
    splits = experiment.evaluate.splits or (experiment.data.eval_split,)
    tables: list[Any] = []
    if metrics.seed and "seed" in request.stages:
        tables.append(seed_table(metrics.seed.methods))
    if {"seed", *MASK_STAGES}.intersection(request.stages):
        tables.append(chain_table(metrics, STAGES, own=own, splits=splits))
    if "evaluate" in request.stages:
        tables += evaluation_tables(metrics, STAGES, splits, own=own)
    for table in tables:
        if table is not None:
            console.print(table, "")


def _exit(stopped: bool, failed: bool) -> None:
    if stopped:
        console.print(supervisor.STOPPED)
        raise typer.Exit(EXIT_STOPPED)
    if failed:
        raise typer.Exit(EXIT_FAILURES)


def _plan(request: Any) -> None:
    from ribray.commands.run import plan_chain
    from ribray.report.summaries import plan_table

    console.print(plan_table(plan_chain(request, console)))


def _stop_on_signals(in_flight: str = "images in flight are", dropped: str = supervisor.STOPPED) -> threading.Event:
    """Let the first Ctrl-C (or SIGTERM) finish what is in flight, and a second one drop it, with these words."""
    stop = threading.Event()
    first = 0.0

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if stop.is_set():
            if time.monotonic() - first > ONE_SIGNAL_SECONDS:
                raise _Dropped(dropped)
            return
        first = time.monotonic()
        stop.set()
        errors.print(f"\nStopping: {in_flight} finished first; press Ctrl-C again to drop them.")

    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)
    return stop


if __name__ == "__main__":
    main()
