"""The errors a person at the keyboard meets: each message is one sentence that says what would be right."""

from collections.abc import Mapping
from typing import Any

EXIT_DONE, EXIT_FAILURES, EXIT_USAGE, EXIT_LOST, EXIT_STOPPED = 0, 1, 2, 3, 130
"""Exit codes of the command line, which says when each is used."""


class RibrayError(Exception):
    """Base of every error whose message is meant for the user; the command line prints it without traceback."""

    exit_code = EXIT_FAILURES


class UsageError(RibrayError):
    """Wrong usage, configuration or data: nothing was started."""

    exit_code = EXIT_USAGE


class HeldError(UsageError):
    """Another process works in the directory."""


class ImageError(RibrayError):
    """One image cannot be used. It becomes one line of ``failures.jsonl`` and the run goes on."""


class ValuesError(ImageError):
    """An image can be decoded, but nobody can say how bright its values are."""


class DamagedError(ImageError):
    """A file holds something else than what was written: it cannot be used, but it can be made again."""


class StageError(RibrayError):
    """A stage as a whole has come to nothing; stages that do not need it can go on, and the same command tries again.

    Attributes:
        result: what the run has come to all the same, once its other stages are done; None before.
    """

    result: Any = None


class DivergedError(StageError):
    """A training's loss left every bound; the steps up to there are in its log."""


class UnreadableError(StageError):
    """A training could read too few of its images to count.

    Attributes:
        unreadable: the images that could not be read, and why.
        can_go_on: whether the last checkpoint comes from before the first of them.
    """

    def __init__(self, sentence: str, unreadable: Mapping[str, str], can_go_on: bool = False) -> None:
        super().__init__(sentence)
        self.unreadable, self.can_go_on = unreadable, can_go_on


class ClusterLostError(RibrayError):
    """The Ray cluster died under the work; the same command continues."""

    exit_code = EXIT_LOST
