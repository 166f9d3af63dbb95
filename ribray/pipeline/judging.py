"""What the stages that judge by the truth share: is it such that it can be judged by?"""

from collections.abc import Iterable, Sequence
from typing import Any

from rich.text import Text

from ribray.data import truth
from ribray.data.dataset import BACKGROUND, IGNORE, Dataset
from ribray.errors import UsageError
from ribray.evaluation.bootstrap import Bootstrapped
from ribray.pipeline.maps import wanted_ids
from ribray.pipeline.stage import Context
from ribray.runs.metrics import Judgement


def require_truth(context: Context, dataset: Dataset, ids: Sequence[str]) -> None:
    """Refuse to judge by masks without a pixel of any class, though labels say that there are some."""
    if dataset.has_masks:
        with context.console.status("looking at the truth"):
            truth.require_foreground(dataset, ids, context.stop.is_set)


def require_truth_of_wanted(context: Context) -> None:
    """Refuse a truth of the wanted images that nothing can be judged by."""
    require_truth(context, evaluated_split(context), judged(context, wanted_ids(context)))


def evaluated_split(context: Context) -> Dataset:
    """Return the data whose truth maps and masks of training images are judged by."""
    config = context.experiment
    return context.dataset(config.seed_eval.split or config.data.train_split)


def judged(context: Context, ids: Iterable[str]) -> list[str]:
    """Return those of ``ids`` that are in the evaluated split, in its order."""
    chosen = set(ids)
    return [id for id in evaluated_split(context).ids if id in chosen]


def with_labels(context: Context, dataset: Dataset, split: str) -> Dataset:
    """Return a split that was opened to be predicted, with its labels where it has any."""
    if dataset.labels.any() or not dataset.has_masks:
        return dataset
    try:
        return context.dataset(split)
    except UsageError:  # no labels are known: nothing can be compared with them
        return dataset


def tell_agreement(context: Context, tally: truth.Tally) -> None:
    """Say, once for a split, how many of its masks disagree with the labels."""
    if (sentence := tally.sentence()) is not None and context.is_news(f"truth of {tally.name}"):
        start, style = ("Warning", "bold red") if tally.is_large else ("Note", "")
        context.console.print(Text(f"{start}: {sentence}", style=style), highlight=False, soft_wrap=True)


def summarise(context: Context, stage: str, counts: Bootstrapped[Any], names: Sequence[str]) -> dict[str, Any]:
    """Return the numbers of what was counted, and say why where there is no mean IoU among them."""
    if not counts.counts.has_foreground and context.is_news(f"no mIoU of {stage}"):
        context.say(
            f"{stage}: no pixel of a class counts in the truth of the {counts.images:,} images judged, so there is no "
            "mIoU."
        )
    if counts.counts.has_foreground and not counts.counts.has_background and context.is_news(f"no 0 of {stage}"):
        lacking = f"no pixel of background counts in the truth of the {counts.images:,} images judged"
        remedy = f"write {BACKGROUND}, not {IGNORE}, where the background is known"
        sentence = f"Warning: {stage}: {lacking}, so covering too much of it costs nothing: {remedy}."
        context.console.print(Text(sentence, style="bold red"), highlight=False, soft_wrap=True)
    return counts.summary(names)


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def mean_ious(*judged: Judgement | None) -> str | None:
    """Return the mean IoU of what was judged, one after the other, as a headline; None where nothing was."""
    means = [number(each.miou) for each in judged if each is not None]
    return f"mIoU {' → '.join(means)}" if means else None
