"""Recorded cases: the real ones hold, and what is wrong is noticed."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ribray.commands import verify as verification
from ribray.commands.verify import verify
from ribray.errors import RibrayError, UsageError
from ribray.irn import loss
from ribray.methods import advcam
from ribray.methods import rib as refine
from ribray.networks import Classifier

REFINEMENTS = {
    "rib_explode_ratio",  # GNDRP, an explosion
    "rib_stop_threshold",  # GAP, its target loss
    "rib_multi_class",  # two classes, all steps
}


def assert_reproduced(folder: Path, case: str) -> None:
    checks = verify(folder / "golden", only=case)
    assert [check for check in checks if not check.ok] == []
    assert {check.case for check in checks} == {"rib weights", f"{case}, plain", f"{case}, folded"}
    quantities = {check.quantity for check in checks}
    assert {
        "losses",
        "target_losses",
        "logits_first",
        "logits_last",
        "steps_done",
        "stop_reason",
    } <= quantities
    assert {"cam_step0_scale0", "cam_step1_scale3", "cam_stride4", "cam_full"} <= quantities


@pytest.mark.parametrize("case", sorted(REFINEMENTS))
def test_recorded_refinements_are_reproduced(case: str, shared_dir: Path) -> None:
    assert_reproduced(shared_dir, case)


@pytest.mark.slow
def test_all_other_recorded_refinements_are_reproduced_too(shared_dir: Path) -> None:
    others = {file.stem for file in (shared_dir / "golden").glob("rib_*.npz")} - REFINEMENTS
    assert others >= {"rib_single_class", "rib_explode_two_classes", "rib_gap_pooling", "rib_weight_decay"}
    for case in others:
        assert_reproduced(shared_dir, case)


def assert_climbs_reproduced(folder: Path, case: str) -> None:
    checks = verify(folder / "golden_advcam", only=case)
    assert [check for check in checks if not check.ok] == []
    assert {check.case for check in checks} == {"rib weights", f"{case}, float64", f"{case}, float32"}
    exact = {check.quantity: check.error for check in checks if check.case == f"{case}, float64"}
    assert {"steps", "cam_scale0", "masked_scale3", "moved_scale1", "sum_scale2", "cam_stride4", "cam_full"} <= {*exact}
    assert max(exact[f"objective_scale{scale}"] for scale in range(4)) < 1e-12  # recorded in float64


@pytest.mark.parametrize("case", ["advcam_single_class", "advcam_no_regularizer"])
def test_recorded_climbs_are_reproduced(case: str, shared_dir: Path) -> None:
    assert_climbs_reproduced(shared_dir, case)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["advcam_two_classes", "advcam_regularizer", "advcam_scales"])
def test_the_other_recorded_climbs_are_reproduced_too(case: str, shared_dir: Path) -> None:
    assert_climbs_reproduced(shared_dir, case)


def test_it_is_the_products_climb_that_is_checked(shared_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advcam, "steps_of", lambda iterations, scales: [2] * scales)
    checks = verify(shared_dir / "golden_advcam", only="advcam_single_class")
    off = {check.quantity for check in checks if not check.ok}
    assert {"steps", "cam_scale0", "masked_scale1", "sum_scale3", "cam_full"} <= off
    assert {"keys", "view_scale1"} <= {check.quantity for check in checks if check.ok}


def test_recorded_pairs_losses_and_gradients_of_irn_are_reproduced(shared_dir: Path) -> None:
    checks = verify(shared_dir / "golden", only="irn")
    assert [check for check in checks if not check.ok] == []
    assert {check.quantity for check in checks} == {
        "search_dst",
        "bg_pos",
        "fg_pos",
        "neg",
        "affinity",
        "loss_positive_affinity",
        "loss_negative_affinity",
        "loss_displacement_fg",
        "loss_displacement_bg",
        "loss_total",
        "grad_edge",
        "grad_displacement",
    }


def test_recorded_random_walks_are_reproduced(shared_dir: Path) -> None:
    checks = verify(shared_dir / "golden", only="random_walk")
    assert [check for check in checks if not check.ok] == []
    assert len(checks) == len(list((shared_dir / "golden").glob("random_walk_*.npz")))


def test_recorded_confident_labels_are_reproduced(shared_dir: Path) -> None:
    pytest.importorskip("pydensecrf")
    checks = verify(shared_dir / "golden", only="dense_crf")
    assert [check for check in checks if not check.ok] == []
    assert len(checks) == 3 * len(list((shared_dir / "golden").glob("dense_crf_*.npz")))


@pytest.fixture
def copied(shared_dir: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A folder with a copy of one recorded case."""

    def copy(case: str) -> Path:
        shutil.copy(shared_dir / "golden" / f"{case}.npz", tmp_path)
        return tmp_path

    return copy


@pytest.fixture
def one_case(copied: Callable[[str], Path]) -> Path:
    return copied("rib_explode_ratio")


@pytest.fixture
def irn_case(copied: Callable[[str], Path]) -> Path:
    return copied("irn_affinity_loss")


@pytest.fixture
def walk_case(copied: Callable[[str], Path]) -> Path:
    return copied("random_walk_odd")


@pytest.fixture
def crf_case(copied: Callable[[str], Path]) -> Path:
    return copied("dense_crf_ir_label")


def change(folder: Path, **changes: np.ndarray | None) -> None:
    file = next(folder.glob("*.npz"))
    with np.load(file) as archive:
        arrays = {name: archive[name] for name in archive.files}
    arrays.update({name: value for name, value in changes.items() if value is not None})
    for name in (name for name, value in changes.items() if value is None):
        del arrays[name]
    np.savez(file, **arrays)


def test_it_is_the_products_refinement_that_is_checked(one_case: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    merge = refine.merge_views
    monkeypatch.setattr(refine, "merge_views", lambda cams: merge(cams) * 1.001)
    off = {check.quantity for check in verify(one_case) if not check.ok}
    assert {"cam_step0_scale0", "cam_step1_scale0"} <= off


def test_a_wrong_recorded_value_is_off(one_case: Path) -> None:
    change(one_case, target_losses=np.array([0.03824]))
    off = [(check.case, check.quantity) for check in verify(one_case) if not check.ok]
    assert off == [(f"rib_explode_ratio, {engine}", "target_losses") for engine in ("plain", "folded")]


def test_recorded_extra_samples_go_through_loss_and_update(one_case: Path) -> None:
    change(one_case, extra_labels=np.zeros((5, 3, 20), np.uint8))
    checks = {check.quantity: check for check in verify(one_case)}
    assert not checks["losses"].ok
    assert not checks["cam_step1_scale0"].ok
    assert checks["target_losses"].ok
    assert checks["cam_step0_scale0"].ok


def test_weights_that_cannot_be_drawn_again_are_off(one_case: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "_WEIGHT_SEED", 1)
    monkeypatch.setitem(verification.CHECKERS, "rib_", lambda *arguments: [])
    checks = verify(one_case)
    assert {check.case for check in checks} == {"rib weights"}
    assert not any(check.ok for check in checks)


def test_drawing_the_weights_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    verification._recorded_classifier.cache_clear()
    assert isinstance(verification._recorded_classifier(0), Classifier)
    assert torch.equal(torch.rand(1), expected)


def test_kinds_without_checker_fail_and_are_left_out_by_the_filter(tmp_path: Path) -> None:
    np.savez(tmp_path / "unheard_of.npz", x=np.zeros(1))
    (check,) = verify(tmp_path)
    assert (check.case, check.ok, check.note) == ("unheard_of", False, "no checker for this kind of case")
    with pytest.raises(UsageError, match=r"no recorded case.*'rib'"):
        verify(tmp_path, only="rib")


def test_missing_folder_and_damaged_files_are_said_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no folder"):
        verify(tmp_path / "nowhere")
    (tmp_path / "rib_x.npz").write_bytes(b"PK not really")
    with pytest.raises(RibrayError, match=r"rib_x\.npz"):
        verify(tmp_path)
    np.savez(tmp_path / "rib_x.npz", image=np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(UsageError, match="rib_x is incomplete: it has no 'label'"):
        verify(tmp_path)


def test_a_case_that_does_not_fit_together_is_refused(one_case: Path) -> None:
    change(one_case, iterations=np.array(0))
    with pytest.raises(UsageError, match=r"rib_explode_ratio\.npz does not fit together.*iterations"):
        verify(one_case)


def test_a_number_that_is_none_is_never_ok() -> None:
    assert not verification.Check("case", "quantity", float("nan"), 1.0).ok


def test_it_is_the_products_pairs_and_loss_that_are_checked(irn_case: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "_EPSILON", 1e-3)
    off = {check.quantity for check in verify(irn_case) if not check.ok}
    assert {"loss_positive_affinity", "loss_negative_affinity", "loss_total", "grad_edge"} <= off
    assert "affinity" not in off


def test_a_pair_label_that_differs_is_off(irn_case: Path) -> None:
    with np.load(irn_case / "irn_affinity_loss.npz") as archive:
        labels = archive["neg"].copy()
    labels[100, 7] ^= 1
    change(irn_case, neg=labels)
    (off,) = (check for check in verify(irn_case) if not check.ok)
    assert (off.quantity, off.error) == ("neg", 1 / labels.size)


def test_other_displacements_are_said_before_anything_is_matched_by_them(irn_case: Path) -> None:
    change(irn_case, search_dst=np.array([[0, 1], [1, 0]]))
    off = {check.quantity for check in verify(irn_case) if not check.ok}
    assert off == {"search_dst"}


def test_an_irn_case_that_does_not_fit_together_is_refused(irn_case: Path) -> None:
    change(irn_case, segmentation=np.zeros((32, 31), np.uint8))
    with pytest.raises(UsageError, match=r"irn_affinity_loss\.npz does not fit together.*do not go with"):
        verify(irn_case)


def test_the_walks_parameters_come_from_the_case(walk_case: Path) -> None:
    assert all(check.ok for check in verify(walk_case))
    for changed in ({"exp_times": 5}, {"beta": 7}, {"radius": 4}):
        with np.load(walk_case / "random_walk_odd.npz") as archive:
            recorded = {name: archive[name] for name in changed}
        change(walk_case, **{name: np.array(value) for name, value in changed.items()})
        assert not any(check.ok for check in verify(walk_case))
        change(walk_case, **recorded)


def test_a_walk_off_by_more_than_the_absolute_tolerance_is_off(walk_case: Path) -> None:
    with np.load(walk_case / "random_walk_odd.npz") as archive:
        propagated = archive["propagated"]
    propagated[0, 0, 20, 20] += 2e-4
    change(walk_case, propagated=propagated)
    (check,) = verify(walk_case)
    assert check.error == pytest.approx(2e-4, rel=0.1) and not check.ok


def test_another_shape_is_off_and_says_so(walk_case: Path) -> None:
    change(walk_case, propagated=np.zeros((2, 1, 3, 4)))
    (check,) = verify(walk_case)
    assert not check.ok
    assert "recorded (2, 1, 3, 4)" in check.note


def test_confident_labels_depend_on_the_recorded_thresholds(crf_case: Path) -> None:
    pytest.importorskip("pydensecrf")
    change(crf_case, conf_fg_threshold=np.array(0.6))
    off = {check.quantity for check in verify(crf_case) if not check.ok}
    assert off == {"crf_fg_labels", "ir_label"}


def test_without_the_crf_only_its_cases_are_off(crf_case: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise UsageError("The dense CRF is not installed.")

    monkeypatch.setattr(verification, "require_crf", missing)
    (check,) = verify(crf_case)
    assert not check.ok and check.note == "The dense CRF is not installed."
