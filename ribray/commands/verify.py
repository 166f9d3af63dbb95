"""Comparing the product's own computations with recorded outputs of the reference implementations.

A folder of recorded cases holds one ``.npz`` per case. The name's beginning says what was recorded
(`CHECKERS`); each kind is run through the code that a run uses, and every recorded quantity gives one
`Check`.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from ribray import storage
from ribray.config import RefineConfig
from ribray.data.transforms import normalise, target_views
from ribray.errors import UsageError
from ribray.irn.loss import irn_loss, pair_labels
from ribray.irn.pairs import Pairs
from ribray.irn.random_walk import random_walk
from ribray.masks.confident import cut, foreground_reading
from ribray.masks.crf import LABEL_CRF, require_crf
from ribray.methods.maps import MapRecord, localization_maps, to_arrays
from ribray.methods.rib import Refinement, Refiner, Trace
from ribray.methods.stop_reasons import EXPLOSION, FINISHED, TARGET_LOSS
from ribray.networks import Classifier, build_backbone
from ribray.networks.engine import Kind
from ribray.networks.weights import drawn_with

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Check:
    """One recorded quantity against the one computed now.

    Attributes:
        case: name of the recorded case.
        quantity: what is compared.
        error: the largest difference, relative to the largest recorded value where there is one (absolute for the
            random walk); of labels the share that differs.
        tolerance: the largest error that is still right.
        note: what there is to say where a number does not say it all.
    """

    case: str
    quantity: str
    error: float
    tolerance: float
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether the error is within the tolerance (one that is not a number is not)."""
        return self.error <= self.tolerance


def verify(directory: str | Path, only: str | None = None, device: str = "cpu") -> list[Check]:
    """Run the recorded cases of a folder.

    Args:
        directory: folder with ``.npz`` cases.
        only: run the cases whose name begins with this.
        device: where to compute; the tolerances are meant for float32 on a CPU.

    Raises:
        UsageError: no such folder or case, or a file that is damaged or lacks what its kind needs.
    """
    folder = storage.path(directory)
    if not folder.is_dir():
        raise UsageError(f"There is no folder {folder} with recorded cases.")
    files = sorted(file for file in folder.glob("*.npz") if file.stem.startswith(only or ""))
    if not files:
        raise UsageError(f"{folder} has no recorded case (*.npz){f' that begins with {only!r}' if only else ''}.")
    checks: list[Check] = []
    for prefix, checker in CHECKERS.items():
        if chosen := [file for file in files if file.stem.startswith(prefix)]:
            checks += checker(chosen, device)
    for file in files:
        if not file.stem.startswith(tuple(CHECKERS)):
            checks.append(Check(file.stem, "kind", float("nan"), 0.0, "no checker for this kind of case"))
    return checks


# --- rib_*: the refinement of one image ---------------------------------------------------------------------

_LOSS_TOLERANCE = 1e-5
_MAP_TOLERANCE = 1e-4
_SUM_TOLERANCE = 1e-6

# The recorded network: its weights are too large to be kept, so they are drawn again from this seed.
_WEIGHT_SEED = 0
_BACKBONE, _OUTPUT_STRIDE = "resnet50", 16
_RESIDUAL_GAIN = 0.25
_HEAD_STD = 0.01
_HEAD_CLASSES = 20
_WEIGHT_SUMS = {
    "backbone.conv1.weight": -0.445381995,
    "backbone.layer4.2.conv3.weight": -2.796644633,
    "head.weight": 2.056218423,
}
_MOMENTUM = 1e-4
_POOLINGS = {"gndp": "gndrp", "gap": "gap"}
_INPUTS = (
    "image",
    "label",
    "extra_images",
    "extra_labels",
    "scales",
    "lr",
    "weight_decay",
    "iterations",
    "tau",
    "stop_threshold",
    "explode_threshold",
    "explode_ratio",
    "pooling",
)
_OUTPUTS = (
    "losses",
    "target_losses",
    "logits_first",
    "logits_last",
    "steps_done",
    "stopped",
    "keys",
    "cam_stride4",
    "cam_full",
)


def check_refinements(files: list[Path], device: str) -> list[Check]:
    """Check recorded refinements on both engines, and before them that the recorded network could be drawn again."""
    recorded_classifier = _recorded_classifier()
    weights = recorded_classifier.state_dict()
    checks = [
        Check(
            "rib weights",
            f"sum of {name}",
            abs(weights[name].double().sum().item() - recorded),
            _SUM_TOLERANCE,
        )
        for name, recorded in _WEIGHT_SUMS.items()
    ]
    for file in files:
        recorded = _read_case(file, _INPUTS + _OUTPUTS)
        with _fitting_together(file):
            for engine in get_args(Kind):
                case = f"{file.stem}, {engine}"
                checks += _check_refinement(case, recorded, copy.deepcopy(recorded_classifier), device, engine)
    return checks


def _check_refinement(case: str, recorded: Arrays, classifier: Classifier, device: str, engine: Kind) -> list[Check]:
    config = _refine_config(case, recorded)
    views = target_views(recorded["image"], config.scales)
    trace = Trace()
    refinement = Refiner(classifier, config, "float32", device, engine).refine(
        views, np.flatnonzero(recorded["label"]).tolist(), lambda step: _extras(recorded, step), trace
    )
    height, width = recorded["image"].shape[:2]
    record = MapRecord.from_arrays(to_arrays(refinement, (height, width), config.scales), case)
    expected_stop = _stop_reason(recorded)
    return [
        _exact(case, "steps_done", refinement.steps, int(recorded["steps_done"])),
        _exact(case, "stop_reason", refinement.stop_reason, expected_stop),
        _exact(case, "keys", refinement.classes.tolist(), recorded["keys"].tolist()),
        _close(case, "losses", np.array(refinement.losses), recorded["losses"], _LOSS_TOLERANCE),
        _close(
            case,
            "target_losses",
            np.array(refinement.target_losses),
            recorded["target_losses"],
            _LOSS_TOLERANCE,
        ),
        _close(case, "logits_first", trace.logits[0], recorded["logits_first"], _LOSS_TOLERANCE),
        _close(case, "logits_last", trace.logits[-1], recorded["logits_last"], _LOSS_TOLERANCE),
        *_check_steps(case, recorded, refinement, trace),
        _close(
            case,
            "cam_stride4",
            localization_maps(record, size="stride4"),
            recorded["cam_stride4"],
            _MAP_TOLERANCE,
        ),
        _close(case, "cam_full", localization_maps(record, size="full"), recorded["cam_full"], _MAP_TOLERANCE),
    ]


def _check_steps(case: str, recorded: Arrays, refinement: Refinement, trace: Trace) -> list[Check]:
    """Compare what each step added at each scale; a scale that never ran was recorded as zeros."""
    checks = []
    for step in range(int(recorded["steps_done"])):
        for scale in range(len(recorded["scales"])):
            name = f"cam_step{step}_scale{scale}"
            added = trace.maps[step] if step < len(trace.maps) else []
            maps = added[scale] if scale < len(added) else np.zeros_like(refinement.initial[scale])
            checks.append(_close(case, name, maps, _array(recorded, name, case), _MAP_TOLERANCE))
    return checks


def _recorded_classifier() -> Classifier:
    with drawn_with(_WEIGHT_SEED):
        backbone = build_backbone(_BACKBONE, _OUTPUT_STRIDE)
        head = torch.empty(_HEAD_CLASSES, backbone.channels[-1], 1, 1).normal_(std=_HEAD_STD)
        classifier = Classifier(backbone, _HEAD_CLASSES)
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if name.endswith("bn3.weight"):
                parameter.fill_(_RESIDUAL_GAIN)
        classifier.head.weight.copy_(head)
    return classifier


def _refine_config(case: str, recorded: Arrays) -> RefineConfig:
    pooling = str(recorded["pooling"])
    if pooling not in _POOLINGS or len(recorded["label"]) != _HEAD_CLASSES:
        raise UsageError(f"The recorded case {case} has pooling {pooling!r} and {len(recorded['label'])} classes.")
    scales = tuple(recorded["scales"].tolist())
    return RefineConfig(
        iterations=int(recorded["iterations"]),
        batch_size=1 + recorded["extra_images"].shape[1],
        lr=float(recorded["lr"]),
        momentum=_MOMENTUM,
        weight_decay=float(recorded["weight_decay"]),
        scales=scales,
        loss_scales=tuple(scale for scale in scales if scale != 0.5),
        pooling="gndrp" if _POOLINGS[pooling] == "gndrp" else "gap",
        pooling_threshold=float(recorded["tau"]),
        stop_threshold=float(recorded["stop_threshold"]),
        explode_threshold=float(recorded["explode_threshold"]),
        explode_ratio=float(recorded["explode_ratio"]),
        precision="float32",
    )


def _extras(recorded: Arrays, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.stack([normalise(crop) for crop in recorded["extra_images"][step]])
    return images, torch.from_numpy(recorded["extra_labels"][step].astype(bool))


def _stop_reason(recorded: Arrays) -> str:
    if not recorded["stopped"][-1]:
        return FINISHED
    return EXPLOSION if len(recorded["losses"]) < int(recorded["steps_done"]) else TARGET_LOSS


# --- random_walk_*: maps spread up to class boundaries ------------------------------------------------------

_WALK_TOLERANCE = 1e-4  # absolute: maps go up to 1
_WALK_ARRAYS = ("cam", "edge", "beta", "exp_times", "radius", "propagated")


def check_random_walks(files: list[Path], device: str) -> list[Check]:
    """Check recorded random walks."""
    checks = []
    for file in files:
        recorded = _read_case(file, _WALK_ARRAYS)
        with _fitting_together(file):
            (walked,) = random_walk(
                [torch.from_numpy(recorded["cam"]).to(device)],
                [torch.from_numpy(recorded["edge"][0]).to(device)],
                radius=int(recorded["radius"]),
                beta=float(recorded["beta"]),
                exp_times=int(recorded["exp_times"]),
            )
            propagated = walked[:, None].cpu().numpy()  # recorded as (C, 1, h, w)
            checks.append(
                _close(file.stem, "propagated", propagated, recorded["propagated"], _WALK_TOLERANCE, absolute=True)
            )
    return checks


# --- irn_*: the loss that IRN learns from -------------------------------------------------------------------

_IRN_TOLERANCE = 1e-4
_IRN_ARRAYS = (
    "segmentation",
    "radius",
    "search_dst",
    "edge_logits",
    "displacement",
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
)


def check_irn_losses(files: list[Path], device: str) -> list[Check]:
    """Check recorded losses of IRN: pairs, their labels and affinities, the loss's parts and gradients."""
    checks = []
    for file in files:
        recorded = _read_case(file, _IRN_ARRAYS)
        with _fitting_together(file):
            checks += _check_irn_loss(file.stem, recorded, device)  # first: it looks at the shapes
            checks += _check_pairs(file.stem, recorded, device)
    return checks


def _check_pairs(case: str, recorded: Arrays, device: str) -> list[Check]:
    labels = torch.from_numpy(recorded["segmentation"]).to(device)[None]
    boundary = torch.from_numpy(recorded["edge_logits"]).to(device)[:, 0].sigmoid()
    pairs = Pairs(int(recorded["radius"]), *labels.shape[1:])
    ours, theirs = pairs.displacements.tolist(), recorded["search_dst"].tolist()
    same = _exact(case, "search_dst", sorted(ours), sorted(theirs))
    if not same.ok:
        return [same]
    order = [ours.index(displacement) for displacement in theirs]  # ribray's order is another one
    kinds = torch.stack([pair_labels(labels, pairs, i).flatten(1) for i in order], dim=1).cpu().numpy()
    affinity = torch.stack([(1 - pairs.strongest(boundary, i)).flatten() for i in order]).cpu().numpy()
    return [
        same,
        *(_labels(case, name, kinds[i], recorded[name], 0.0) for i, name in enumerate(("bg_pos", "fg_pos", "neg"))),
        _close(case, "affinity", affinity, recorded["affinity"], _IRN_TOLERANCE),
    ]


def _check_irn_loss(case: str, recorded: Arrays, device: str) -> list[Check]:
    boundary = torch.from_numpy(recorded["edge_logits"]).to(device).requires_grad_()
    displacement = torch.from_numpy(recorded["displacement"]).to(device).requires_grad_()
    labels = torch.from_numpy(recorded["segmentation"]).to(device)[None]
    losses = irn_loss(boundary, displacement, labels, int(recorded["radius"]))
    gradients = torch.autograd.grad(losses.loss, (boundary, displacement))
    computed = {
        "loss_positive_affinity": losses.positive,
        "loss_negative_affinity": losses.negative,
        "loss_displacement_fg": losses.displacement_fg,
        "loss_displacement_bg": losses.displacement_bg,
        "loss_total": losses.loss,
        "grad_edge": gradients[0],
        "grad_displacement": gradients[1],
    }
    return [
        _close(case, name, value.detach().cpu().numpy(), recorded[name], _IRN_TOLERANCE)
        for name, value in computed.items()
    ]


# --- dense_crf_*: confident labels --------------------------------------------------------------------------

_CRF_TOLERANCE = 1e-3  # share of the pixels
_CRF_ARRAYS = (
    "image",
    "cam",
    "keys",
    "conf_fg_threshold",
    "conf_bg_threshold",
    "crf_fg_labels",
    "crf_bg_labels",
    "ir_label",
)


def check_confident_labels(files: list[Path], device: str) -> list[Check]:
    """Check recorded confident labels, which the dense CRF made; it computes on the CPU whatever the device."""
    checks = []
    for file in files:
        recorded = _read_case(file, _CRF_ARRAYS)
        try:
            require_crf()
        except UsageError as error:  # the other kinds can be checked without it
            checks.append(Check(file.stem, "ir_label", float("nan"), _CRF_TOLERANCE, str(error)))
            continue
        with _fitting_together(file):
            checks += _check_confident_labels(file.stem, recorded)
    return checks


def _check_confident_labels(case: str, recorded: Arrays) -> list[Check]:
    keys = recorded["keys"]  # mask values: 0, then the present classes
    high, low = float(recorded["conf_fg_threshold"]), float(recorded["conf_bg_threshold"])

    def cut_at(fg_threshold: float, bg_threshold: float) -> np.ndarray:
        return cut(recorded["image"], recorded["cam"], keys[1:] - 1, fg_threshold, bg_threshold, LABEL_CRF)

    mask = cut_at(high, low)
    return [
        _labels(case, "crf_fg_labels", foreground_reading(mask), keys[recorded["crf_fg_labels"]], _CRF_TOLERANCE),
        _labels(case, "crf_bg_labels", cut_at(low, low), keys[recorded["crf_bg_labels"]], _CRF_TOLERANCE),
        _labels(case, "ir_label", mask, recorded["ir_label"], _CRF_TOLERANCE),
    ]


CHECKERS: dict[str, Callable[[list[Path], str], list[Check]]] = {
    "rib_": check_refinements,
    "dense_crf_": check_confident_labels,
    "irn_": check_irn_losses,
    "random_walk_": check_random_walks,
}
"""From the beginning of a case's name to what checks such cases: (files, device) → checks."""


# --- comparing ----------------------------------------------------------------------------------------------


def _read_case(file: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    arrays = storage.read_npz(file)
    for name in names:
        _array(arrays, name, file.stem)
    return arrays


@contextlib.contextmanager
def _fitting_together(file: Path) -> Iterator[None]:
    """Say in a sentence which case has arrays that do not go with each other."""
    try:
        yield
    except (ValueError, TypeError, IndexError) as error:  # pydantic's ValidationError is a ValueError
        reason = " ".join(str(error).split()).rstrip(".")
        raise UsageError(f"The recorded case {file} does not fit together: {reason}.") from None


def _array(arrays: Arrays, name: str, case: str) -> np.ndarray:
    if name not in arrays:
        raise UsageError(f"The recorded case {case} is incomplete: it has no '{name}'.")
    return arrays[name]


def _close(
    case: str,
    quantity: str,
    computed: np.ndarray,
    recorded: np.ndarray,
    tolerance: float,
    absolute: bool = False,
) -> Check:
    """Compare arrays by the largest difference, over the largest recorded value unless `absolute`."""
    if computed.shape != recorded.shape:
        return _other_shape(case, quantity, computed, recorded, tolerance)
    difference = np.abs(computed.astype(np.float64) - recorded).max(initial=0.0)
    largest = np.abs(recorded).max(initial=0.0)
    relative = largest and not absolute
    return Check(case, quantity, float(difference / largest if relative else difference), tolerance)


def _labels(case: str, quantity: str, computed: np.ndarray, recorded: np.ndarray, tolerance: float) -> Check:
    """Compare arrays of labels by the share that differs."""
    if computed.shape != recorded.shape:
        return _other_shape(case, quantity, computed, recorded, tolerance)
    return Check(case, quantity, float((computed != recorded).mean()), tolerance)


def _other_shape(case: str, quantity: str, computed: np.ndarray, recorded: np.ndarray, tolerance: float) -> Check:
    note = f"shape {computed.shape}, recorded {recorded.shape}"
    return Check(case, quantity, float("inf"), tolerance, note)


def _exact(case: str, quantity: str, computed: object, recorded: object) -> Check:
    same = computed == recorded
    return Check(case, quantity, 0.0 if same else 1.0, 0.0, "" if same else f"{computed}, recorded {recorded}")
