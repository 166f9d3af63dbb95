"""The errors a person at the keyboard meets: each message is one sentence that says what would be right."""

EXIT_DONE, EXIT_FAILURES, EXIT_USAGE, EXIT_LOST, EXIT_STOPPED = 0, 1, 2, 3, 130
"""Exit codes of the command line, which says when each is used."""


class RibrayError(Exception):
    """Base of every error whose message is meant for the user; the command line prints it without traceback."""


class UsageError(RibrayError):
    """Wrong usage, configuration or data: nothing was started. Exit code 2."""


class HeldError(UsageError):
    """Another process works in the directory."""


class ImageError(RibrayError):
    """One image cannot be used. It becomes one line of ``failures.jsonl`` and the run goes on."""


class DamagedError(ImageError):
    """A file holds something else than what was written: it cannot be used, but it can be made again."""


class DivergedError(RibrayError):
    """A training's loss left every bound; the steps up to there are in its log."""


class ClusterLostError(RibrayError):
    """The Ray cluster died under the work. Exit code 3; the same command continues."""
