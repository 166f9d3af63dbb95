"""What is known of a stage without running it; whoever shows a run is handed these (`ribray.stages.STAGES`)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ribray.runs.metrics import Judgement


@dataclass(frozen=True)
class Judged:
    """A part of a stage's numbers: masks, or maps cut to masks, that were judged by the truth."""

    label: str  # what was judged, such as "pseudo masks"
    numbers: Judgement
    heading: str = ""  # follows the name of the maps in the heading of a column, where a stage has several such parts
    source: str | None = None  # the maps that were judged; None: those that the run's masks are made from
    is_held_out: bool = False  # whether held-out images were judged, not training images


@dataclass(frozen=True, kw_only=True)
class StageFacts:
    name: str
    folder: str = ""  # where its artifact lies in the run directory; by default in a folder of its name
    section: str | None = None  # its own section of the configuration
    trainings: tuple[str, ...] = ()  # folders, below its own, with the log of a training
    headline: Callable[[Any], str | None] = lambda metrics: None
    """Its numbers (`ribray.runs.metrics.StageMetrics`) in a few words; None where there is nothing to say."""
    judged: Callable[[Any], Sequence[Judged]] = lambda metrics: ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", self.folder or self.name)
