"""W&B's files, read back with W&B's own tool."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Logged:
    """What one start of a run has written."""

    folder: Path
    run: dict[str, Any]
    """Id, name, group, job type, tags, and whether an upload adds to the run."""
    config: dict[str, Any]
    summary: dict[str, Any]
    history: list[dict[str, Any]]
    exit_code: int | None
    """None where the process was killed."""

    def series(self, name: str) -> list[tuple[float, float]]:
        """A training's values over its steps, in the order in which they were logged: ``classifier/loss``."""
        step = f"{name.rpartition('/')[0]}/step"
        return [(row[step], row[name]) for row in self.history if name in row]

    def table(self, name: str) -> dict[str, Any]:
        """A table's columns and rows."""
        return json.loads((self.folder / "files" / self.summary[name]["path"]).read_text())

    def lines(self, name: str) -> dict[str, list[tuple[float, float]]]:
        """A chart's lines: points by the lines' names."""
        table = self.table(f"{name}_table")
        assert table["columns"] == ["step", "lineKey", "lineVal"]
        lines: dict[str, list[tuple[float, float]]] = {}
        for x, key, y in table["data"]:
            lines.setdefault(key, []).append((x, y))
        return lines

    def image(self, name: str) -> Path:
        """The file of a picture."""
        return self.folder / "files" / self.summary[name]["path"]


def folders(run: Path) -> list[Path]:
    """What each start of a run has written, oldest first."""
    return sorted((run / "wandb").glob("*run-*"), key=lambda folder: next(folder.glob("*.wandb")).stat().st_mtime_ns)


def read_back(folder: Path) -> Logged:
    """Read what one start has written."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json"]
    records = _run([*command, str(folder)])
    of = {kind: [record[kind] for record in records if record["type"] == kind] for kind in ("run", "history", "exit")}
    (state,) = _run([*command, "--summary", str(folder)], one_object=True)
    return Logged(
        folder,
        of["run"][0],
        state["config"],
        state["summary"],
        [row["item"] for row in of["history"]],
        of["exit"][0].get("exit_code", 0) if of["exit"] else None,
    )


def _run(command: list[str], one_object: bool = False) -> list[dict[str, Any]]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout, done.stderr
    return [json.loads(text) for text in ([done.stdout] if one_object else done.stdout.splitlines())]
