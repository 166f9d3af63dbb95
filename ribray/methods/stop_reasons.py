"""Why refinements end, and what that says about the settings.

*Counts* are numbers of refined images by reason; an image without any class is not refined and counts for nothing.
"""

from collections.abc import Mapping
from typing import Any

from ribray.config import MethodConfig
from ribray.methods.method import FINISHED

TARGET_LOSS = "target_loss"
EXPLOSION = "explosion"

_TESTS = {EXPLOSION: ("explosion test", "explode_ratio"), TARGET_LOSS: ("target loss", "stop_threshold")}
"""Reasons shortly, and the setting that puts the test off; of others their name says it."""
MEAN_STEPS = "mean_steps"
STUDY = "settings_for_a_network"
"""The sweep that looks for settings."""


class StopTally:
    """Counts how refinements by one method ended.

    Attributes:
        counts: images by reason, all that its settings know.
    """

    def __init__(self, config: MethodConfig) -> None:
        self._iterations = config.steps
        self._steps = 0
        self.counts = dict.fromkeys((FINISHED, *config.early), 0)

    def add(self, reason: str, steps: int) -> None:
        """Count a refinement that began so many steps; none, as of an image without any class, is not counted.

        A target loss that passes its threshold in the last step ends nothing: that one finished.
        """
        if steps:
            is_whole = reason == TARGET_LOSS and steps == self._iterations
            reason = FINISHED if is_whole else reason
            self.counts[reason] = self.counts.get(reason, 0) + 1
            self._steps += steps

    def summary(self) -> dict[str, Any]:
        """Return what a run's metrics keep: the counts, and the mean number of steps begun (None without images)."""
        images = sum(self.counts.values())
        return {"stop_reasons": dict(self.counts), MEAN_STEPS: self._steps / images if images else None}


def stopped_early(counts: Mapping[str, int]) -> str | None:
    """Return how many images each test ended, such as "explosion test 10 of 28, target loss 3"; None where none did."""
    names = {reason: name for reason, (name, _) in _TESTS.items()}
    names |= {reason: reason.replace("_", " ") for reason in counts if reason not in (FINISHED, *names)}
    found = [f"{name} {counts[reason]}" for reason, name in names.items() if counts.get(reason)]
    return ", ".join([f"{found[0]} of {sum(counts.values())}", *found[1:]]) if found else None


def stop_hint(counts: Mapping[str, int], iterations: int) -> str | None:
    """Return one sentence on the settings to change where most images ended early; else None."""
    images = sum(counts.values())
    early = images - counts.get(FINISHED, 0)
    if iterations < 2 or 2 * early <= images or not any(counts.get(reason) for reason in _TESTS):
        return None
    later = " or ".join(f"a larger {setting}" for reason, (_, setting) in _TESTS.items() if counts.get(reason))
    return (
        f"{early} of {images} images did not get through their {iterations} steps ({stopped_early(counts)}): the "
        f"settings may not suit this network; try a smaller lr, or {later} (the study {STUDY} compares them)."
    )
