"""The stages of the chain, in order. A new stage is one new module and one line here."""

from collections.abc import Collection, Iterable

from ribray.config import Experiment
from ribray.pipeline.stage import Stage
from ribray.stages import classifier, confident, evaluate, irn, pseudo, refine, seed, segmentation

STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        classifier.STAGE,
        refine.STAGE,
        seed.STAGE,
        confident.STAGE,
        irn.STAGE,
        pseudo.STAGE,
        segmentation.STAGE,
        evaluate.STAGE,
    )
}


def feeds(name: str, stages: Iterable[str], imported: Collection[str] = ()) -> bool:
    """Whether one of ``stages`` builds on stage ``name``, directly or not; imported ones build on none."""
    return any(
        name in STAGES[stage].upstream or feeds(name, STAGES[stage].upstream, imported)
        for stage in stages
        if stage not in imported
    )


_ON_MASKS = [name for name, stage in STAGES.items() if "masks.source" in stage.reads]
MASK_STAGES = tuple(name for name in STAGES if name in _ON_MASKS or any(feeds(first, (name,)) for first in _ON_MASKS))
"""Stages that depend on which maps masks are made from: a variant on other maps has them of its own."""


def stages_of(experiment: Experiment) -> dict[str, Stage]:
    """Return the chain of an experiment."""
    return STAGES
