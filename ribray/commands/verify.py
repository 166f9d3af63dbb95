"""Comparing the product's own computations with recorded outputs of the reference implementations.

A folder of recorded cases holds one ``.npz`` per case. The name's beginning says what was recorded (`CHECKERS`); each
kind is run through the code that a run uses, and every recorded quantity gives one `Check`.
"""

import contextlib
import copy
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch

from ribray import storage
from ribray.config import AdvCAMConfig, RIBConfig
from ribray.data.transforms import IMAGENET, normalise, rescaled, target_views
from ribray.errors import UsageError
from ribray.irn.loss import irn_loss, pair_labels
from ribray.irn.pairs import Pairs
from ribray.irn.random_walk import random_walk
from ribray.masks.confident import cut, foreground_reading
from ribray.masks.crf import LABEL_CRF, require_crf
from ribray.methods import advcam
from ribray.methods.maps import MapRecord, Size, localization_maps, to_arrays
from ribray.methods.rib import Refiner, Trace
from ribray.methods.stop_reasons import EXPLOSION, FINISHED, TARGET_LOSS
from ribray.networks import Classifier, build_backbone
from ribray.networks.engine import Kind
from ribray.networks.weights import drawn_with

if TYPE_CHECKING:
    from rich.console import Console

    from ribray.progress import Bar

UNKNOWN = "no checker for this kind of case"


@dataclass(frozen=True)
class Check:
    """One recorded quantity against the one computed now."""

    case: str
    quantity: str
    error: float
    """The largest difference, relative to the largest recorded value where there is one (absolute for the random walk);
    of labels the share that differs."""
    tolerance: float
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether the error is within the tolerance (one that is not a number is not)."""
        return self.error <= self.tolerance


@dataclass(frozen=True)
class Case:
    """Recorded arrays by name, and comparisons with them."""

    name: str
    arrays: dict[str, np.ndarray]
    way: str | None = None  # how it is computed, of several ways

    @property
    def title(self) -> str:
        return self.name if self.way is None else f"{self.name}, {self.way}"

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.arrays:
            raise UsageError(f"The recorded case {self.name} is incomplete: it has no '{name}'.")
        return self.arrays[name]

    def tensor(self, name: str, device: str) -> torch.Tensor:
        return torch.from_numpy(self[name]).to(device)

    def close(
        self, quantity: str, computed: np.ndarray, tolerance: float, absolute: bool = False, part: Any = ...
    ) -> Check:
        """Compare arrays by the largest difference, over the largest recorded value unless `absolute`.

        `part` is the index of what there is to compare with.
        """
        recorded = self[quantity][part]
        if computed.shape != recorded.shape:
            return self._other_shape(quantity, computed, recorded, tolerance)
        difference, largest = np.abs(computed.astype(np.float64) - recorded).max(initial=0.0), 0.0
        if not absolute:
            largest = np.abs(recorded).max(initial=0.0)
        return Check(self.title, quantity, float(difference / largest if largest else difference), tolerance)

    def labels(self, quantity: str, computed: np.ndarray, recorded: np.ndarray, tolerance: float) -> Check:
        if computed.shape != recorded.shape:
            return self._other_shape(quantity, computed, recorded, tolerance)
        return Check(self.title, quantity, float((computed != recorded).mean()), tolerance)

    def exact(self, quantity: str, computed: object, recorded: object) -> Check:
        same = computed == recorded
        return Check(self.title, quantity, float(not same), 0.0, "" if same else f"{computed}, recorded {recorded}")

    def _other_shape(self, quantity: str, computed: np.ndarray, recorded: np.ndarray, tolerance: float) -> Check:
        note = f"shape {computed.shape}, recorded {recorded.shape}"
        return Check(self.title, quantity, float("inf"), tolerance, note)


def verify(
    directory: str | Path, only: str | None = None, device: str = "cpu", console: "Console | None" = None
) -> list[Check]:
    """Run the recorded cases of a folder, or those whose name begins with `only`; a console shows how far that is.

    The tolerances are meant for a CPU.
    """
    folder = storage.path(directory)
    if not folder.is_dir():
        raise UsageError(f"There is no folder {folder} with recorded cases.")
    files = sorted(file for file in folder.glob("*.npz") if file.stem.startswith(only or ""))
    if not files:
        raise UsageError(f"{folder} has no recorded case (*.npz){f' that begins with {only!r}' if only else ''}.")
    checks: list[Check] = []
    if any(file.stem.startswith(("rib_", "advcam_")) for file in files):
        weights = _recorded_classifier(_WEIGHT_SEED).state_dict()  # could they be drawn again?
        for name, recorded in _WEIGHT_SUMS.items():
            difference = abs(weights[name].double().sum().item() - recorded)
            checks.append(Check("rib weights", f"sum of {name}", difference, _SUM_TOLERANCE))
    kinds = {file: next((prefix for prefix in CHECKERS if file.stem.startswith(prefix)), None) for file in files}
    others = [Check(file.stem, "kind", math.nan, 0.0, UNKNOWN) for file, kind in kinds.items() if kind is None]
    cases = [(file, checker) for prefix, checker in CHECKERS.items() for file in files if kinds[file] == prefix]
    shown: contextlib.AbstractContextManager[Bar | None] = contextlib.nullcontext()
    if console is not None:
        from ribray.progress import show_progress  # brings rich, which a bare machine with a GPU need not have

        shown = show_progress(console, "verify", len(cases), unit="cases")
    with shown as bar:
        for file, checker in cases:
            case = Case(file.stem, storage.read_npz(file))
            try:
                checks += checker(case, device)
            except (ValueError, TypeError, IndexError) as error:  # pydantic's ValidationError is a ValueError
                reason = " ".join(str(error).split()).rstrip(".")
                raise UsageError(f"The recorded case {file} does not fit together: {reason}.") from None
            if bar is not None:
                bar.advance(1, 0)
    return checks + others


# --- rib_*: the refinement of one image ---------------------------------------------------------------------

_LOSS_TOLERANCE, _MAP_TOLERANCE, _SUM_TOLERANCE = 1e-5, 1e-4, 1e-6

# The recorded network: its weights are too large to be kept, so they are drawn again from this seed.
_WEIGHT_SEED = 0
_BACKBONE, _OUTPUT_STRIDE, _RESIDUAL_GAIN = "resnet50", 16, 0.25
_HEAD_CLASSES, _HEAD_STD = 20, 0.01
_WEIGHT_SUMS = {
    "backbone.conv1.weight": -0.445381995,
    "backbone.layer4.2.conv3.weight": -2.796644633,
    "head.weight": 2.056218423,
}
_MOMENTUM = 1e-4
_POOLINGS = {"gndp": "gndrp", "gap": "gap"}


def check_refinement(case: Case, device: str) -> Iterator[Check]:
    """Check a recorded refinement on both engines."""
    for engine in get_args(Kind):
        case, trace = replace(case, way=engine), Trace()
        config, image, present = _refine_config(case), case["image"], np.flatnonzero(case["label"]).tolist()
        refiner = Refiner(copy.deepcopy(_recorded_classifier(_WEIGHT_SEED)), config, "float32", device, engine)
        views = target_views(image, config.scales)
        refinement = refiner.refine(views, present, functools.partial(_extras, case), trace)
        yield case.exact("steps_done", refinement.steps, int(case["steps_done"]))
        stopped = EXPLOSION if len(case["losses"]) < int(case["steps_done"]) else TARGET_LOSS
        yield case.exact("stop_reason", refinement.stop_reason, stopped if case["stopped"][-1] else FINISHED)
        yield case.exact("keys", refinement.classes.tolist(), case["keys"].tolist())
        yield case.close("losses", np.array(refinement.losses), _LOSS_TOLERANCE)
        yield case.close("target_losses", np.array(refinement.numbers["target_losses"]), _LOSS_TOLERANCE)
        yield case.close("logits_first", trace.logits[0], _LOSS_TOLERANCE)
        yield case.close("logits_last", trace.logits[-1], _LOSS_TOLERANCE)
        for step in range(int(case["steps_done"])):  # what each added at each scale, which was recorded as zeros …
            added = trace.maps[step] if step < len(trace.maps) else []
            for scale in range(len(case["scales"])):  # … where the scale never ran
                maps = added[scale] if scale < len(added) else np.zeros_like(refinement.maps["cam"][scale])
                yield case.close(f"cam_step{step}_scale{scale}", maps, _MAP_TOLERANCE)
        record = MapRecord.from_arrays(to_arrays(refinement, image.shape[:2], config.scales), case.title)
        yield case.close("cam_stride4", localization_maps(record, size="stride4"), _MAP_TOLERANCE)
        yield case.close("cam_full", localization_maps(record, size="full"), _MAP_TOLERANCE)


def _refine_config(case: Case) -> RIBConfig:
    label, pooling = case["label"], str(case["pooling"])
    if pooling not in _POOLINGS or len(label) != _HEAD_CLASSES:
        raise UsageError(f"The recorded case {case.title} has pooling {pooling!r} and {len(label)} classes.")
    scales = tuple(case["scales"].tolist())
    same = ("lr", "weight_decay", "stop_threshold", "explode_threshold", "explode_ratio")
    values: dict[str, Any] = {
        "iterations": int(case["iterations"]),
        "batch_size": 1 + case["extra_images"].shape[1],
        "momentum": _MOMENTUM,
        "scales": scales,
        "loss_scales": tuple(scale for scale in scales if scale != 0.5),
        "pooling": _POOLINGS[pooling],
        "pooling_threshold": float(case["tau"]),
        "precision": "float32",
        **{name: float(case[name]) for name in same},
    }
    return RIBConfig(**values)


@functools.cache
def _recorded_classifier(seed: int) -> Classifier:
    with drawn_with(seed):
        backbone = build_backbone(_BACKBONE, _OUTPUT_STRIDE)
        head = torch.empty(_HEAD_CLASSES, backbone.channels[-1], 1, 1).normal_(std=_HEAD_STD)
        classifier = Classifier(backbone, _HEAD_CLASSES)
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if name.endswith("bn3.weight"):
                parameter.fill_(_RESIDUAL_GAIN)
        classifier.head.weight.copy_(head)
    return classifier


def _extras(case: Case, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.stack([normalise(crop) for crop in case["extra_images"][step]])
    return images, torch.from_numpy(case["extra_labels"][step].astype(bool))


# --- advcam_*: the climbs of one image, in float64 and in float32 -------------------------------------------

_EXACT_TOLERANCE = 1e-6
_FIRST_TOLERANCE, _MOVE_TOLERANCE = 3e-5, 3e-4  # of the first step; of its size
# Rounding drives climbs apart (docs/method.md, section 6), the more the longer their steps: what float32 can promise of
# the last map, absolute. With the steps of "regularizer", 0.5, maps of a step are up to 0.3 apart by it; the last map
# came out 0.105 apart on an AMD EPYC.
_DRIFT = {"advcam_single_class": 3e-4, "advcam_no_regularizer": 3e-3, "advcam_regularizer": 0.3}
_MOST_DRIFT = 0.1
_TRACED = ("cam", "pooled", "objective", "distance", "gradient_max")


def check_advcam(case: Case, device: str) -> Iterator[Check]:
    """Check recorded climbs: every step in float64, the first step and the end in float32."""
    config = AdvCAMConfig(
        method="advcam",
        iterations=int(case["iterations"]),
        regularizer=float(case["coefficient"]),
        step_size=float(case["step_size"]),
        score_threshold=float(case["score_threshold"]),
        scales=tuple(case["scales"].tolist()),
    )
    for dtype, check in ((torch.float64, _check_climbs), (torch.float32, _check_first_steps)):
        own, trace = replace(case, way=str(dtype).removeprefix("torch.")), advcam.Trace()
        views = target_views(case["image"], config.scales)
        yield own.close("view_scale1", views[1][0].numpy(), _EXACT_TOLERANCE)
        if dtype == torch.float64:
            views = _recorded_views(case["image"], config.scales)
        classifier = copy.deepcopy(_recorded_classifier(_WEIGHT_SEED)).to(dtype)
        method = advcam.AdvCAM(classifier, config, "float32", device)
        refined = method.refine(views, np.flatnonzero(case["label"]).tolist(), trace=trace)
        record = MapRecord.from_arrays(to_arrays(refined, case["image"].shape[:2], config.scales), own.title)
        yield own.exact("keys", refined.classes.tolist(), case["keys"].tolist())
        yield from check(own, trace, record)


def _check_climbs(case: Case, trace: advcam.Trace, record: MapRecord) -> Iterator[Check]:
    steps = [len(_traced(case, trace, scale, "cam")[0]) for scale in range(len(record.scales))]
    yield case.exact("steps", steps, case["steps"].tolist())
    for scale, view in enumerate(_recorded_views(case["image"], record.scales)):
        for name in _TRACED:
            yield case.close(f"{name}_scale{scale}", _traced(case, trace, scale, name), _EXACT_TOLERANCE)
        masked = _traced(case, trace, scale, "masked")
        yield case.exact(f"masked_scale{scale}", masked.tolist(), case[f"masked_scale{scale}"].tolist())
        pairs, axes = _traced(case, trace, scale, "manipulated"), (2, 3, 4, 5)  # (P, T, 2, 3, H, W)
        moved = np.stack((pairs.min(axes), pairs.max(axes), np.abs(pairs - view.numpy()).mean(axes)), axis=-1)
        yield case.close(f"moved_scale{scale}", moved, _EXACT_TOLERANCE)
        yield case.close(f"sum_scale{scale}", record.maps[record.own][scale], _EXACT_TOLERANCE)
        for name, part in (("", slice(None)), ("_first", 0), ("_last", -1)):
            if f"manipulated{name}_scale{scale}" in case.arrays:
                yield case.close(f"manipulated{name}_scale{scale}", pairs[:, part], _EXACT_TOLERANCE)
    for size in get_args(Size):
        yield case.close(f"cam_{size}", localization_maps(record, size=size), _EXACT_TOLERANCE)


def _check_first_steps(case: Case, trace: advcam.Trace, record: MapRecord) -> Iterator[Check]:
    for scale in range(len(record.scales)):
        for name in ("cam", "pooled", "objective"):
            first = _traced(case, trace, scale, name)[:, 0]
            yield case.close(f"{name}_scale{scale}", first, _FIRST_TOLERANCE, part=np.s_[:, 0])
    for name, part in (("manipulated_scale1", np.s_[:, 0]), ("manipulated_first_scale1", slice(None))):
        if name in case.arrays:
            difference = np.abs(_traced(case, trace, 1, "manipulated")[:, 0] - case[name][part]).mean()
            yield Check(case.title, name, float(difference / case["step_size"]), _MOVE_TOLERANCE)
    drift = _DRIFT.get(case.name, _MOST_DRIFT)
    yield case.close("cam_stride4", localization_maps(record, size="stride4"), drift, absolute=True)


def _traced(case: Case, trace: advcam.Trace, scale: int, name: str) -> np.ndarray:
    """Return a traced value of every present class and step (P, T, …)."""
    return np.stack([np.stack(trace.values[scale, key][name]) for key in case["keys"].tolist()])


def _recorded_views(image: np.ndarray, scales: Sequence[float]) -> list[torch.Tensor]:
    """Return views as they were recorded: normalised in float64, which differs in the last bit of float32."""
    mean, std = (np.array(values) for values in (IMAGENET.mean, IMAGENET.std))
    views = [((rescaled(image, scale) / 255 - mean) / std).astype(np.float32).transpose(2, 0, 1) for scale in scales]
    return [torch.from_numpy(np.stack((view, view[..., ::-1]))) for view in views]


# --- random_walk_*: maps spread up to class boundaries ------------------------------------------------------

_WALK_TOLERANCE = 1e-4  # absolute: maps go up to 1


def check_random_walk(case: Case, device: str) -> Iterator[Check]:
    maps, edge = [case.tensor("cam", device)], [case.tensor("edge", device)[0]]
    radius, exp_times = int(case["radius"]), int(case["exp_times"])
    (walked,) = random_walk(maps, edge, radius=radius, beta=float(case["beta"]), exp_times=exp_times)
    propagated = walked[:, None].cpu().numpy()  # recorded as (C, 1, h, w)
    yield case.close("propagated", propagated, _WALK_TOLERANCE, absolute=True)


# --- irn_*: the loss that IRN learns from -------------------------------------------------------------------

_IRN_TOLERANCE = 1e-4


def check_irn_loss(case: Case, device: str) -> Iterator[Check]:
    """Check a recorded loss of IRN: its parts and gradients, pairs, their labels and affinities."""
    boundary = case.tensor("edge_logits", device).requires_grad_()
    displacement = case.tensor("displacement", device).requires_grad_()
    labels = case.tensor("segmentation", device)[None]
    losses = irn_loss(boundary, displacement, labels, int(case["radius"]))  # first: it looks at the shapes
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
    for name, value in computed.items():
        yield case.close(name, value.detach().cpu().numpy(), _IRN_TOLERANCE)
    pairs, edges = Pairs(int(case["radius"]), *labels.shape[1:]), boundary.detach()[:, 0].sigmoid()
    ours, theirs = pairs.displacements.tolist(), case["search_dst"].tolist()
    same = case.exact("search_dst", sorted(ours), sorted(theirs))
    yield same
    if same.ok:
        order = [ours.index(displacement) for displacement in theirs]  # ribray's order is another one
        kinds = torch.stack([pair_labels(labels, pairs, i).flatten(1) for i in order], dim=1).cpu().numpy()
        affinity = torch.stack([(1 - pairs.strongest(edges, i)).flatten() for i in order]).cpu().numpy()
        for i, name in enumerate(("bg_pos", "fg_pos", "neg")):
            yield case.labels(name, kinds[i], case[name], 0.0)
        yield case.close("affinity", affinity, _IRN_TOLERANCE)


# --- dense_crf_*: confident labels --------------------------------------------------------------------------

_CRF_TOLERANCE = 1e-3  # share of the pixels


def check_confident_labels(case: Case, device: str) -> Iterator[Check]:
    """Check recorded confident labels, which the dense CRF made; it computes on the CPU whatever the device."""
    try:
        require_crf()
    except UsageError as error:  # the other kinds can be checked without it
        yield Check(case.name, "ir_label", float("nan"), _CRF_TOLERANCE, str(error))
        return
    keys = case["keys"]  # mask values: 0, then the present classes
    high, low = float(case["conf_fg_threshold"]), float(case["conf_bg_threshold"])
    mask, low_mask = (cut(case["image"], case["cam"], keys[1:] - 1, fg, low, LABEL_CRF) for fg in (high, low))
    for name, computed, recorded in (
        ("crf_fg_labels", foreground_reading(mask), keys[case["crf_fg_labels"]]),
        ("crf_bg_labels", low_mask, keys[case["crf_bg_labels"]]),
        ("ir_label", mask, case["ir_label"]),
    ):
        yield case.labels(name, computed, recorded, _CRF_TOLERANCE)


CHECKERS: dict[str, Callable[[Case, str], Iterator[Check]]] = {
    "rib_": check_refinement,
    "advcam_": check_advcam,
    "dense_crf_": check_confident_labels,
    "irn_": check_irn_loss,
    "random_walk_": check_random_walk,
}
"""From the beginning of a case's name to what checks such a case on a device."""
