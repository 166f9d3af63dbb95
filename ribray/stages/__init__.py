"""The stages of the chain, in order. A new stage is one new module and one line here."""

from ribray.stages import classifier, refine, seed
from ribray.stages.stage import Stage

STAGES: dict[str, Stage] = {stage.name: stage for stage in (classifier.STAGE, refine.STAGE, seed.STAGE)}
