"""The ``ribray`` command: reads its arguments, calls one function, prints.

Exit codes: 0 done; 1 done but some images failed, or a stage failed; 2 wrong usage, configuration or data, or no way to
a Ray cluster, said before anything is done; 3 the Ray cluster died under the work, and the same command continues; 130
stopped by the user.
"""

import gc
import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from ribray import __version__, storage, supervisor
from ribray.config import find_recipe, load_experiment, shipped_recipes, to_yaml
from ribray.errors import EXIT_FAILURES, EXIT_STOPPED, RibrayError, UsageError
from ribray.terminal import Dropped, console, leave, print_run, say, say_error, say_place, stop_on_signals, told

app = typer.Typer(
    help="Weakly supervised segmentation with RIB, on Ray: from image-level labels to pixel masks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _location(text: str) -> Path:
    location = storage.path(text)
    storage.require_reachable(location)
    return location


def _debug(is_wanted: bool) -> bool:
    logging.getLogger("ribray.cluster.pool").setLevel(logging.DEBUG if is_wanted else logging.NOTSET)
    return is_wanted


def _option(name: str, help: str, metavar: str | None = None, **more: Any) -> Any:
    return typer.Option(name, help=help, metavar=metavar, **more)


def _place(name: str, help: str, metavar: str = "DIR") -> Any:
    return _option(name, help, metavar, parser=_location)


def _place_argument(help: str | None, metavar: str) -> Any:
    return typer.Argument(help=help, metavar=metavar, parser=_location)


DEBUG = "Show the traceback of errors that nobody expects of an image."
BREAK_LOCK = "Take the place of a process on an object store that no longer exists."
RECIPE = "A shipped recipe or the path of a YAML file."

DebugOption = Annotated[bool, _option("--debug", DEBUG, callback=_debug)]
OutOption = Annotated[Path | None, _place("--out", "Run directory or URL (default: runs/RECIPE).")]
BreakLockOption = Annotated[bool, _option("--break-lock", BREAK_LOCK)]
RecipeArgument = Annotated[str, typer.Argument(help=RECIPE, metavar="RECIPE")]
RunArgument = Annotated[Path, _place_argument("Directory of a run.", "RUN")]
SetOption = Annotated[list[str] | None, _option("--set", "Change one configuration key.", "KEY=VALUE")]


def main(arguments: list[str] | None = None, supervised: bool | None = None) -> None:
    """Run the command line, in a supervised child where the arguments are this process's; errors are one sentence."""
    try:
        if arguments is None if supervised is None else supervised:
            supervisor.supervise(say)
            gc.set_threshold(10_000)  # looking for garbage takes a fifth of an import's time, and finds none
        app(args=arguments, standalone_mode=True)
    except RibrayError as error:
        say_error(error)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.filename is None and error.strerror is None:
            raise
        place = f"{error.filename}: " if error.filename is not None else ""
        say_error(RibrayError(f"{place}{error.strerror}."))
        sys.exit(EXIT_FAILURES)
    except Dropped as dropped:
        say(str(dropped))
        sys.exit(EXIT_STOPPED)


def job(command: str, *options: str) -> None:
    main([command, *sys.argv[1:], *options], supervised=True)


@app.callback(invoke_without_command=True)
def _top(version: Annotated[bool, _option("--version", "Print the version.")] = False) -> None:
    if version:
        console.print(f"ribray {__version__}", highlight=False)
        raise typer.Exit


@app.command()
def quickstart(
    out: OutOption = None, settings: SetOption = None, break_lock: BreakLockOption = False, debug: DebugOption = False
) -> None:
    """Show RIB on a drawn world: minutes on a laptop, no download."""
    from ribray.commands.report import write_report

    request = _request("quickstart", out, settings, break_lock=break_lock)
    finished = _run(request)
    if not finished.stopped:
        say_place("report", write_report(request.directory))
    leave(finished.stopped, bool(finished.failures))


@app.command()
def run(
    recipe: RecipeArgument,
    out: OutOption = None,
    settings: SetOption = None,
    stages: Annotated[str | None, _option("--stages", "Stages to run, comma-separated (default: all).", "A,B")] = None,
    redo: Annotated[str | None, _option("--redo", "Make this stage, and what follows, again.", "STAGE")] = None,
    fork: Annotated[
        Path | None, _place("--fork", "Go on in a new run DIR that reuses what still fits of the one at --out.")
    ] = None,
    plan: Annotated[bool, _option("--plan", "Say what would be done, and do nothing.")] = False,
    break_lock: BreakLockOption = False,
    debug: DebugOption = False,
) -> None:
    """Run the stages of a recipe; the same command continues what was stopped."""
    request = _request(recipe, out, settings, stages, redo=redo, fork=fork, break_lock=break_lock)
    if plan:
        from ribray.commands.run import plan_chain
        from ribray.report.summaries import plan_table

        console.print(plan_table(plan_chain(request, console)))
        return
    finished = _run(request)
    leave(finished.stopped, bool(finished.failures))


@app.command()
def status(directory: Annotated[Path, _place_argument(None, "DIR")]) -> None:
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
        _option("--base", "Recipe (or directory of a finished run) in place of the sweep's own base.", "RECIPE"),
    ] = None,
    out: Annotated[Path | None, _place("--out", "Directory of the sweep (default: runs/SWEEP).")] = None,
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
    request = SweepRequest(definition, source, title_of(source), location, settings or (), break_lock)
    result = run_sweep(request, console, stop_on_signals())
    console.print("", results_table(result.ledger), "", sep="\n")
    for place in result.files:
        say_place("table" if place.suffix in (".md", ".csv") else "picture", place)
    if result.sync_command is not None:
        say_place("W&B", result.sync_command)
    if not result.stopped:
        say_place("report", write_report(location))
    leave(result.stopped, result.failed)


@app.command()
def report(directory: Annotated[Path, _place_argument("Directory of a run or of a sweep.", "RUN_OR_SWEEP")]) -> None:
    """Write one HTML file that shows a run, or a sweep: numbers, curves, pictures."""
    from ribray.commands.report import write_report

    say_place("report", write_report(directory))


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
    only: Annotated[str | None, _option("--only", "Only cases whose name begins so.", "PREFIX")] = None,
) -> None:
    """Run recorded cases through this installation and compare, quantity by quantity."""
    from ribray.commands.verify import verify as run_checks
    from ribray.report.summaries import check_table

    checks = run_checks(directory, only, console=console)
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
        Path | None, _option("--out", "Folder for check.json (not a run directory; default: here).", "DIR")
    ] = None,
) -> None:
    """Look at every image and mask of a recipe's data; exit code 1 where something is wrong with one."""
    from ribray.commands.check import check_data, write_report
    from ribray.report.summaries import data_report
    from ribray.runs.directory import require_outside

    experiment, folder = load_experiment(recipe, settings or []), storage.absolute(out or Path())
    require_outside(folder)
    report = check_data(experiment, console, stop_on_signals())
    location = write_report(report, experiment, folder)
    console.print("", data_report(report), "", sep="\n")
    console.print(f"[dim]All of it:[/dim] {escape(str(location))}", highlight=False, soft_wrap=True)
    leave(report.stopped, bool(report.findings))


@app.command("import-maps")
def import_maps(
    source: Annotated[Path, _place_argument("Folder with ID.npz (an array per class) or ID/CLASS.npy.", "DIR")],
    recipe: Annotated[str, _option("--recipe", RECIPE, "RECIPE")],
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
        metrics, failures = RunMetrics(**result.metrics), [vars(failure) for failure in result.failures]
        console.print("", run_summary(metrics, STAGES, request.directory, failures=failures))

    result = told(lambda: run_import(request, source, console, stop_on_signals()), tell)
    leave(result.stopped, bool(result.failures))


@app.command()
def export(
    directory: RunArgument,
    format: Annotated[str, _option("--format", "coco, voc-server or png.", "FORMAT")],
    out: Annotated[Path | None, _place("--out", "What to write (default: in exports/ of the run).", "FILE")] = None,
    split: Annotated[
        str | None, _option("--split", "Images of this split (default: the one the masks are of).", "NAME")
    ] = None,
    what: Annotated[
        str | None, _option("--what", "pseudo or predictions (default: pseudo; for voc-server predictions).", "MASKS")
    ] = None,
) -> None:
    """Write a run's masks for other programs: COCO instances, the archive for VOC's server, or a folder of ID.png."""
    from ribray.commands.export import export_masks

    exported = export_masks(directory, format, console, stop_on_signals(), out=out, split=split, what=what)
    if exported is not None:
        without = f"; {exported.missing} of the split have no mask" if exported.missing else ""
        objects = "" if exported.annotations is None else f", {exported.annotations} annotations"
        say(f"{exported.images} images{objects}{without}: {exported.file}", console)
    leave(exported is None, False)


@app.command()
def predict(
    directory: RunArgument,
    images: Annotated[Path, _place_argument("An image, or a folder of images.", "IMAGES")],
    out: Annotated[Path, _place("--out", "Folder for masks/ and overlays/.")],
    workers: Annotated[
        int, _option("--workers", "Actors of a pool on Ray (default: this process does the work).", "N", min=0)
    ] = 0,
    debug: DebugOption = False,
) -> None:
    """Predict the masks of any photographs with a run's segmentation network."""
    from ribray.commands.predict import predict_images
    from ribray.report.summaries import failure_lines

    predicted = predict_images(directory, images, out, console, stop_on_signals(), workers)
    if predicted.failures:
        console.print("", failure_lines([vars(failure) for failure in predicted.failures]), sep="\n")
    failed = f", {len(predicted.failures)} failed (failures.jsonl)" if predicted.failures else ""
    say(f"{predicted.done} of {predicted.images} images{failed}: {predicted.folder}", console)
    leave(predicted.stopped, bool(predicted.failures))


@app.command("map")
def map_command(
    photographs: Annotated[list[Path], _place_argument("Photographs; they serve each other as extras.", "PHOTO")],
    network: Annotated[
        str, _option("--network", "timm/NAME, a name of torchvision's such as resnet50, or a run's directory.", "NAME")
    ] = "timm/tf_efficientnet_lite0",
    weights: Annotated[str, _option("--weights", "A file, imagenet or none.", "FILE")] = "imagenet",
    classes: Annotated[
        str | None,
        _option("--classes", "Names or indices, for all photographs (default: what the network sees).", "A,B"),
    ] = None,
    extras: Annotated[Path | None, _place("--extras", "Folder of other photographs, labelled or not.")] = None,
    method: Annotated[str, _option("--method", "rib, advcam, or several side by side.", "A,B")] = "rib",
    settings: SetOption = None,
    out: Annotated[Path, _place("--out", "Folder for NAME.png and NAME.npz.")] = Path("maps"),
    long_side: Annotated[  # by default that of PASCAL VOC's photographs, for which the method's settings were chosen
        int, _option("--long-side", "Scale larger photographs down to so many pixels; 0: do not.", "N")
    ] = 500,
) -> None:
    """Make the maps of photographs by a pretrained network or a run's classifier; nothing is trained."""
    from ribray.commands.map import MapRequest, map_photographs

    methods = [name.strip() for name in method.split(",")]
    request = MapRequest(photographs, network, weights, classes, extras, settings or (), out, long_side, methods)
    mapped = map_photographs(request, console, stop_on_signals("the photograph in flight is", "Stopped."))
    if mapped.done + mapped.failed < mapped.total:
        say(f"Stopped: {mapped.done} of {mapped.total} photographs are done.")
        raise typer.Exit(EXIT_STOPPED)
    leave(False, bool(mapped.failed))


@app.command()
def bench(
    name: Annotated[
        str, typer.Argument(help="Such as random-walk; benchmarks/README.md describes them.", metavar="NAME")
    ],
    json_file: Annotated[Path | None, _option("--json", "Write the result there too.", "FILE")] = None,
    full: Annotated[bool, _option("--full", "Also run the part that takes minutes.")] = False,
) -> None:
    """Run a benchmark of this checkout."""
    from ribray.commands.bench import run_benchmark

    if json_file is not None and (json_file.is_dir() or not json_file.absolute().parent.is_dir()):
        raise UsageError(f"--json {json_file} is to be a file in a folder that exists.")
    with console.status(f"measuring {escape(name)}"):
        result, table = run_benchmark(name, full)
    if json_file is not None:
        storage.write_json(json_file, result)
    console.print(table, highlight=False)


def _request(recipe: str, out: Path | None, settings: list[str] | None, stages: str | None = None, **more: Any) -> Any:
    from ribray.commands.run import Request, parse_stages

    location = _output(out, find_recipe(recipe).stem)
    if supervisor.is_restarted():
        # What it names was forgotten, and the lock broken, the first time; what has been made since then stays.
        more |= {"redo": None, "break_lock": False}
    return Request(load_experiment(recipe, settings or []), recipe, location, parse_stages(stages), **more)


def _output(out: Path | None, name: str) -> Path:
    """Return the directory to work in, which a job is to name in full."""
    from ribray.cluster.session import inside_job

    location = out or Path("runs") / name
    if inside_job() and not location.is_absolute():
        raise UsageError(
            f"--out {location} is relative, and a job runs in a temporary copy of the working directory; "
            "give an absolute path on storage that every node shares."
        )
    return location


def _run(request: Any) -> Any:
    from ribray.commands.run import run_chain

    return told(lambda: run_chain(request, console, stop_on_signals()), lambda result: print_run(request, result))


if __name__ == "__main__":
    main()
