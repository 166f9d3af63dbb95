"""The stages of the chain, in order. A new stage is one new module and one line here."""

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

MASK_STAGES = tuple(STAGES)[list(STAGES).index(confident.NAME) :]
"""From maps to masks: what a variant on other maps has of its own."""
