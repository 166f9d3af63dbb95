"""RIB's effect on the quickstart's world; slow, and asserted with a margin below what was measured."""

import numpy as np
import pytest
from safetensors.torch import save_file

from benchmarks.quickstart_study import VARIANTS, measure
from tools.pretraining import pretrain

pytestmark = [pytest.mark.on_demand, pytest.mark.timeout(1500), pytest.mark.usefixtures("ray_session")]


def test_rib_lifts_the_seed_and_each_of_its_parts_helps(tmp_path):
    table = measure(tmp_path, ["seed=1"], [name for name in VARIANTS if "instead of" in name])
    assert table["RIB"] >= table["plain CAM"] + 10
    assert table["RIB"] > table["GAP instead of GNDRP"]
    assert table["RIB"] > table["BCE (sigmoid) instead of L_RIB"]
    assert table["after step 10"] > table["after step 3"] > table["after step 1"]
    assert table["after step 1"] == pytest.approx(table["plain CAM"])
    assert table["after step 10"] == pytest.approx(table["RIB"])


def test_a_backbone_pretrained_anew_serves_as_well_as_the_shipped_one(tmp_path):
    save_file({name: tensor.contiguous() for name, tensor in pretrain().items()}, tmp_path / "anew.safetensors")
    seeds = (0, 1, 2)
    means = {}
    for weights in ("synthetic", str(tmp_path / "anew.safetensors")):
        tables = [
            measure(
                tmp_path / str(len(means)) / str(seed),
                [f"seed={seed}", f"classifier.weights={weights}", "refine.batch_size=1"],
                variants=[],
            )
            for seed in seeds
        ]
        means[weights] = {name: np.mean([table[name] for table in tables]) for name in ("plain CAM", "RIB")}
    shipped, anew = means.values()
    for name in ("plain CAM", "RIB"):
        assert anew[name] == pytest.approx(shipped[name], abs=3), means
