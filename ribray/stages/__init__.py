"""The stages of the chain, in order. A new stage is one new module and one line here."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from ribray.config import Experiment
from ribray.errors import UsageError
from ribray.pipeline.maps import source_stage
from ribray.pipeline.stage import Stage
from ribray.stages import classifier, confident, evaluate, irn, pseudo, refine, seed, segmentation

_IN_ORDER = (classifier, refine, seed, confident, irn, pseudo, segmentation, evaluate)
STAGES: dict[str, Stage] = {module.NAME: module.STAGE for module in _IN_ORDER}


def stages_of(experiment: Experiment) -> dict[str, Stage]:
    """Return the chain of an experiment: with a stage `refine` of each method, and the others on those they need."""
    first, *others = (refine.stage_of(method) for method in experiment.methods)
    found: dict[str, Stage] = {}
    for name, stage in STAGES.items():
        if name == refine.NAME:
            found |= {each.name: each for each in (first, *others)}
        elif name == seed.NAME:
            numbers = [f"{source}.{number}" for source in experiment.maps for number in ("miou", "threshold")]
            follows = tuple(each.name for each in others)
            found[name] = replace(stage, upstream=(first.name,), follows=follows, writes=tuple(numbers))
        else:
            makers = {refine.NAME: source_stage(experiment)}
            found[name] = replace(stage, upstream=tuple(makers.get(each, each) for each in stage.upstream))
    return found


def asked_for(names: Iterable[str], chain: Mapping[str, Stage]) -> tuple[str, ...]:
    """Return the stages of a chain that are named; ``refine`` stands for the refinement by every method."""
    wanted = set(names)
    if unknown := sorted(wanted - {*chain, refine.NAME}):
        raise UsageError(f"There is no stage '{unknown[0]}'; the stages are {', '.join(chain)}.")
    is_every = refine.NAME in wanted
    return tuple(
        name for name, stage in chain.items() if name in wanted or (is_every and stage.section == refine.STAGE.section)
    )


def feeds(
    name: str, stages: Iterable[str], imported: Collection[str] = (), chain: Mapping[str, Stage] = STAGES
) -> bool:
    """Whether one of ``stages`` builds on stage ``name``, directly or not; imported ones build on none."""
    for stage in stages:
        if stage not in imported and stage in chain:
            before = (*chain[stage].upstream, *chain[stage].follows)
            if name in before or feeds(name, before, imported, chain):
                return True
    return False


_ON_MASKS = [name for name, stage in STAGES.items() if "masks.source" in stage.reads]
MASK_STAGES = tuple(name for name in STAGES if name in _ON_MASKS or any(feeds(first, (name,)) for first in _ON_MASKS))
"""Stages that depend on which maps masks are made from: a variant on other maps has them of its own."""
