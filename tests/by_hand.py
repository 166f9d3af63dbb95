"""Run directories with masks or a network in them, put there without running a stage."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ribray.config import Experiment, flatten, to_values, validate_experiment
from ribray.data.dataset import colour_map
from ribray.data.mask_files import mask_path, write_mask
from ribray.runs.keys import StageKey, select_configuration
from ribray.runs.run import Run
from ribray.stages import STAGES


def empty_run(directory: Path, values: Mapping[str, Any], parent: Run | None = None) -> Run:
    """A run that has its experiment.yaml and nothing else."""
    run = Run.open(directory, parent)
    run.write_experiment(validate_experiment(values, "values"), "recipe")
    run.close()
    return run


def begin(run: Run, stage: str, upstream: Mapping[str, str] | None = None) -> Path:
    """Write the record of a stage and return its folder."""
    run.begin(STAGES[stage].folder, key(run.read_experiment(), stage, upstream))
    return run.directory / STAGES[stage].folder


def key(experiment: Experiment, stage: str, upstream: Mapping[str, str] | None = None) -> StageKey:
    """The key of a stage that builds on these."""
    definition, flat = STAGES[stage], flatten(to_values(experiment))
    configuration = select_configuration(flat, definition.reads, definition.leaves_out)
    return StageKey(stage, definition.format, configuration, upstream or {}, {})


def put_masks(folder: Path, masks: Mapping[str, np.ndarray]) -> None:
    for id, mask in masks.items():
        write_mask(mask_path(folder, id), mask, colour_map(), {"id": id})


def random_mask(seed: int, size: tuple[int, int], values: list[int]) -> np.ndarray:
    """Noise over coarse blocks: every value in several pieces."""
    rng = np.random.default_rng(seed)
    blocks = rng.choice(values, (size[0] // 4 + 1, size[1] // 4 + 1)).astype(np.uint8)
    mask = np.kron(blocks, np.ones((4, 4), np.uint8))[: size[0], : size[1]]
    mask[0, : len(values)] = values
    return mask
