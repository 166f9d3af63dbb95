"""The refinement of one image against a plain reading of docs/method.md, section 2, and what it promises.

The oracle below recomputes everything, loops over rows and classes, takes its gradients and updates by hand
and shares no code with the product but the network's layers. Both run in float64, so that they agree closely.
"""

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ribray.config import RIBConfig
from ribray.errors import ImageError
from ribray.methods.method import Refined
from ribray.methods.rib import Refiner, Trace
from ribray.networks import Classifier, build_classifier

CLASSES = 5
PRESENT = [1, 3]
SCALES = (1.0, 0.5, 1.5)
BASE: dict[str, Any] = {
    "iterations": 4,
    "batch_size": 4,
    "lr": 1e-3,
    "scales": SCALES,
    "loss_scales": (1.0, 1.5),
    "stop_threshold": 1e9,
    "explode_ratio": 10.0,
}


# --- the oracle ---------------------------------------------------------------------------------------------


def oracle_logit(cam: Tensor, present: bool, index: int, config: RIBConfig) -> Tensor:
    limit = config.pooling_first_classes
    if config.pooling == "gndrp" and present and (limit is None or index < limit):
        peak = cam.max().item()
        mask = torch.tensor([[float(value / peak < config.pooling_threshold) for value in row] for row in cam.tolist()])
        return (cam * mask).sum() / cam.numel()
    return cam.sum() / cam.numel()


def oracle_rows(cams: Tensor, labels: list[list[bool]], config: RIBConfig) -> list[list[Tensor]]:
    return [
        [oracle_logit(cams[row, index], labels[row][index], index, config) for index in range(CLASSES)]
        for row in range(len(cams))
    ]


def oracle_loss(rows: list[list[Tensor]], labels: list[list[bool]], name: str) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for row, present in zip(rows, labels, strict=True):
        for logit, is_present in zip(row, present, strict=True):
            if name == "rib":
                total = total - logit if is_present else total
                continue
            activated = {
                "bce_sigmoid": lambda x: 1 / (1 + torch.exp(-x)),
                "bce_tanh": lambda x: (torch.tanh(x) + 1) / 2,
                "bce_softsign": lambda x: (x / (1 + x.abs()) + 1) / 2,
            }[name](logit)
            total = total - torch.log(activated if is_present else 1 - activated)
    return total


def oracle(classifier: Classifier, config: RIBConfig, views: list[Tensor], extras: Callable) -> dict[str, Any]:
    network = copy.deepcopy(classifier)
    learning = ("layer3.", "layer4.", "block2.", "block3.")
    parameters = [one for name, one in network.backbone.named_parameters() if name.startswith(learning)]
    parameters.append(network.head.weight)
    velocity: list[Tensor | None] = [None] * len(parameters)
    target = [index in PRESENT for index in range(CLASSES)]
    sums: list[Tensor] = []
    out: dict[str, Any] = {"losses": [], "target_losses": [], "shares": [], "by_step": [], "stop": "finished"}
    for step in range(config.iterations):
        rows: list[list[Tensor]] = []
        exploded = False
        for scale, view in enumerate(views):
            cams = network.head(network.backbone.features(view)[-1])
            merged = cams[0].clamp(min=0) + torch.flip(cams[1].clamp(min=0), [2])
            merged = merged[PRESENT].detach()
            if step == 0:
                sums.append(merged)
            else:
                sums[scale] = sums[scale] + merged
            if scale == 0:
                covered = torch.zeros(merged.shape[1:], dtype=torch.bool)
                for one in merged:
                    covered |= one / (one.max() + 1e-5) > config.explode_threshold
                out["shares"].append(covered.sum().item() / covered.numel())
                if step > 0 and out["shares"][-1] > config.explode_ratio:
                    exploded = True
                    break
            if config.scales[scale] in config.loss_scales:
                rows += oracle_rows(cams, [target, target], config)
        out["by_step"].append(list(sums))
        out["steps"] = step + 1
        if exploded:
            out["stop"] = "explosion"
            break
        out["target_losses"].append(sum(row[index].item() for row in rows for index in PRESENT))
        labels = [target] * len(rows)
        if (drawn := extras(step)) is not None:
            extra_labels = drawn[1].tolist()
            rows += oracle_rows(network.head(network.backbone.features(drawn[0])[-1]), extra_labels, config)
            labels += extra_labels
        loss = oracle_loss(rows, labels, config.loss)
        out["losses"].append(loss.item())
        if abs(out["target_losses"][-1]) > config.stop_threshold:
            out["stop"] = "target_loss"
            break
        gradients = torch.autograd.grad(loss, parameters)
        lr = config.lr * (1 - step / config.iterations) ** 0.9
        with torch.no_grad():
            for index, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
                change = gradient + config.weight_decay * parameter
                previous = velocity[index]
                change = change if previous is None else config.momentum * previous + change
                velocity[index] = change
                head = parameter is network.head.weight
                parameter -= lr * (config.head_lr_factor if head else 1) * change
    out["refined"] = sums
    return out


# --- one small problem --------------------------------------------------------------------------------------


def make_classifier(dtype: torch.dtype = torch.float64, backbone: str = "small") -> Classifier:
    torch.manual_seed(0)
    classifier = build_classifier(backbone, CLASSES, 8 if backbone == "small" else 16)
    torch.nn.init.normal_(classifier.head.weight, std=0.1 if backbone == "small" else 0.003)
    return classifier.to(dtype)


def make_views(seed: int = 0, dtype: torch.dtype = torch.float64, scales: tuple[float, ...] = SCALES) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    views = []
    for scale in scales:
        view = torch.randn(3, int(48 * scale), int(64 * scale), generator=generator, dtype=dtype)
        views.append(torch.stack([view, view.flip(-1)]))
    return views


def make_extras(step: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    labels = torch.zeros(6, CLASSES, dtype=torch.bool)
    labels[:, 0] = True
    labels[1::2, 4] = True
    return torch.randn(6, 3, 32, 32, generator=generator, dtype=dtype), labels  # more than one part on a CPU


def refine(config: RIBConfig, views: list[Tensor], trace: Trace | None = None, **changes: Any) -> Refined:
    refiner = Refiner(make_classifier(), config)
    for name, value in changes.items():
        setattr(refiner, name, value)
    return refiner.refine(views, PRESENT, make_extras, trace)


def relative_error(computed: Any, expected: Any) -> float:
    expected = np.asarray(expected)
    return float(np.abs(np.asarray(computed) - expected).max() / np.abs(expected).max())


def assert_equals_oracle(result: Refined, expected: dict[str, Any]) -> None:
    assert result.stop_reason == expected["stop"]
    assert result.steps == expected["steps"]
    assert result.classes.tolist() == PRESENT
    for scale in range(len(SCALES)):
        assert relative_error(result.maps["cam"][scale], expected["by_step"][0][scale]) < 1e-9
        assert relative_error(result.maps["rib"][scale], expected["refined"][scale]) < 1e-9
    assert relative_error(result.numbers["target_losses"], expected["target_losses"]) < 1e-6  # kept in float32
    updates = expected["losses"][: expected["steps"] - 1]
    assert len(result.losses) == len(updates)
    if updates:
        assert relative_error(result.losses, updates) < 1e-9


def free_run(**settings: Any) -> dict[str, Any]:
    """The oracle's run with no stop rule in the way, to choose thresholds from."""
    return oracle(make_classifier(), RIBConfig(**{**BASE, **settings}), make_views(), make_extras)


# --- the method ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"pooling": "gap"},
        {"pooling_first_classes": 2},
        {"pooling_threshold": 0.7, "weight_decay": 0.5, "momentum": 0.9},
        {"loss": "bce_sigmoid"},
        {"loss": "bce_tanh"},
        {"loss": "bce_softsign"},
        {"loss_scales": (0.5,)},
        {"head_lr_factor": 1.0, "iterations": 2},
    ],
    ids=str,
)
def test_refinement_equals_a_plain_reading_of_the_method(settings: dict[str, Any]) -> None:
    config = RIBConfig(**{**BASE, **settings})
    expected = oracle(make_classifier(), config, make_views(), make_extras)
    plain = expected["by_step"][0][0] * config.iterations
    assert relative_error(expected["refined"][0], plain) > 1e-3, "this case would not notice a missing update"
    assert_equals_oracle(refine(config, make_views()), expected)


def test_refinement_of_a_resnet_equals_a_plain_reading_of_the_method() -> None:
    config = RIBConfig(**{**BASE, "iterations": 2, "lr": 1e-5})
    classifier = make_classifier(backbone="resnet18")
    expected = oracle(classifier, config, make_views(), make_extras)
    assert relative_error(expected["refined"][0], expected["by_step"][0][0] * 2) > 1e-3
    assert_equals_oracle(Refiner(classifier, config).refine(make_views(), PRESENT, make_extras), expected)


@pytest.mark.parametrize("reads_before_update", [True, False], ids=["as on a CPU", "as on a GPU"])
@pytest.mark.parametrize("stop_at", [0, 2, 3])
def test_target_loss_beyond_its_threshold_stops_at_that_step(stop_at: int, reads_before_update: bool) -> None:
    losses = [abs(loss) for loss in free_run(pooling="gap")["target_losses"]]
    assert losses == sorted(losses)
    below = losses[stop_at - 1] if stop_at else 0.0
    config = RIBConfig(**{**BASE, "pooling": "gap", "stop_threshold": (below + losses[stop_at]) / 2})
    expected = oracle(make_classifier(), config, make_views(), make_extras)
    assert (expected["stop"], expected["steps"]) == ("target_loss", stop_at + 1)
    assert_equals_oracle(refine(config, make_views(), reads_before_update=reads_before_update), expected)


def exploding(step: int) -> RIBConfig:
    """A configuration whose refinement explodes at ``step``: every step covers more than the one before."""
    shares = free_run(explode_threshold=0.5)["shares"]
    assert shares == sorted(set(shares))
    ratio = (shares[step - 1] + shares[step]) / 2 if step > 1 else shares[0] / 2  # step 0 is above it, to no effect
    return RIBConfig(**{**BASE, "explode_threshold": 0.5, "explode_ratio": ratio})


@pytest.mark.parametrize("reads_before_update", [True, False], ids=["as on a CPU", "as on a GPU"])
@pytest.mark.parametrize("explodes_at", [1, 2, 3])
def test_explosion_keeps_only_scale_one_of_its_step(explodes_at: int, reads_before_update: bool) -> None:
    config = exploding(explodes_at).model_copy(update={"keep_steps": True})
    expected = oracle(make_classifier(), config, make_views(), make_extras)
    assert (expected["stop"], expected["steps"]) == ("explosion", explodes_at + 1)
    result = refine(config, make_views(), reads_before_update=reads_before_update)
    assert_equals_oracle(result, expected)
    assert len(result.numbers["target_losses"]) == result.steps - 1
    *_, before, after = result.by_step["rib"]
    assert (after[0] != before[0]).any()
    assert all(np.array_equal(after[scale], before[scale]) for scale in (1, 2))


def test_a_share_of_exactly_the_ratio_is_no_explosion() -> None:
    share = free_run(explode_threshold=0.5)["shares"][-1]
    at = RIBConfig(**{**BASE, "explode_threshold": 0.5, "explode_ratio": share})
    below = RIBConfig(**{**BASE, "explode_threshold": 0.5, "explode_ratio": np.nextafter(share, 0)})
    assert refine(at, make_views()).stop_reason == "finished"
    assert refine(below, make_views()).stop_reason == "explosion"


def test_step_zero_never_explodes() -> None:
    config = RIBConfig(**{**BASE, "explode_threshold": 1e-6, "explode_ratio": 1e-6})
    result = refine(config, make_views())
    assert (result.stop_reason, result.steps, len(result.losses)) == ("explosion", 2, 1)


def test_both_ways_of_reading_stop_tests_give_the_same_bytes() -> None:
    config = RIBConfig(**BASE)
    first = refine(config, make_views(), reads_before_update=True)
    second = refine(config, make_views(), reads_before_update=False)
    assert first.losses == second.losses
    assert all(a.tobytes() == b.tobytes() for a, b in zip(first.maps["rib"], second.maps["rib"], strict=True))


# --- promises -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_image_gives_the_same_bytes_whatever_was_refined_before(precision: str) -> None:
    def result(refiner: Refiner, seed: int) -> list[bytes]:
        views = make_views(seed, torch.float32)
        refinement = refiner.refine(views, PRESENT, lambda step: make_extras(step, torch.float32))
        return [maps.tobytes() for maps in (*refinement.maps["cam"], *refinement.maps["rib"])]

    config = RIBConfig(**{**BASE, "momentum": 0.9, "iterations": 3})
    alone = result(Refiner(make_classifier(torch.float32), config, precision), 0)
    busy = Refiner(make_classifier(torch.float32), config, precision)
    others = [result(busy, seed) for seed in (1, 2)]
    assert result(busy, 0) == alone
    assert alone not in others


def test_bfloat16_follows_float32_and_keeps_float32_weights() -> None:
    config = RIBConfig(**{**BASE, "iterations": 3, "lr": 1e-3, "pooling": "gap"})
    results = []
    for precision in ("float32", "bfloat16"):
        refiner = Refiner(make_classifier(torch.float32), config, precision)
        views = make_views(0, torch.float32)
        results.append(refiner.refine(views, PRESENT, lambda step: make_extras(step, torch.float32)))
        assert {parameter.dtype for parameter in refiner.learnable} == {torch.float32}
    exact, fast = results
    for scale in range(len(SCALES)):
        assert fast.maps["rib"][scale].dtype == np.float32
        assert 0 < relative_error(fast.maps["rib"][scale], exact.maps["rib"][scale]) < 0.05


def test_kept_steps_begin_with_the_initial_and_end_with_the_refined_maps() -> None:
    config = RIBConfig(**{**BASE, "keep_steps": True})
    result = refine(config, make_views())
    assert len(result.by_step["rib"]) == result.steps == 4
    for scale in range(len(SCALES)):
        assert np.array_equal(result.by_step["rib"][0][scale], result.maps["cam"][scale])
        assert np.array_equal(result.by_step["rib"][-1][scale], result.maps["rib"][scale])
        assert all(
            (b[scale] >= a[scale]).all() for a, b in zip(result.by_step["rib"], result.by_step["rib"][1:], strict=False)
        )
    without = refine(RIBConfig(**BASE), make_views())
    assert without.by_step == {}
    assert all(np.array_equal(a, b) for a, b in zip(result.maps["rib"], without.maps["rib"], strict=True))


def test_a_longer_schedule_is_not_a_continued_shorter_one() -> None:
    """The learning rate decays over K, so the maps after two of four steps are not those of K = 2."""
    four = refine(RIBConfig(**{**BASE, "keep_steps": True}), make_views())
    two = refine(RIBConfig(**{**BASE, "iterations": 2}), make_views())
    assert np.array_equal(four.by_step["rib"][1][0], two.maps["rib"][0])  # step 0 has the same rate at any K
    three = refine(RIBConfig(**{**BASE, "iterations": 3}), make_views())
    assert not np.array_equal(four.by_step["rib"][2][0], three.maps["rib"][0])


def test_the_last_step_draws_no_extras_unless_traced() -> None:
    asked: list[int] = []

    def extras(step: int) -> tuple[Tensor, Tensor]:
        asked.append(step)
        return make_extras(step)

    refiner = Refiner(make_classifier(), RIBConfig(**BASE))
    plain = refiner.refine(make_views(), PRESENT, extras)
    assert asked == [0, 1, 2]
    trace = Trace()
    traced = refiner.refine(make_views(), PRESENT, extras, trace)
    assert asked == [0, 1, 2, 0, 1, 2, 3]
    assert traced.losses[:3] == plain.losses
    assert len(traced.losses) == 4
    assert [logits.shape for logits in trace.logits] == [(4 + 6, CLASSES)] * 4
    assert all(np.array_equal(a, b) for a, b in zip(plain.maps["rib"], traced.maps["rib"], strict=True))
    total = sum(maps[0] for maps in trace.maps)
    np.testing.assert_allclose(total, plain.maps["rib"][0], rtol=1e-12)


def test_a_step_that_stops_costs_a_cpu_no_extras() -> None:
    asked: list[int] = []
    config = RIBConfig(**{**BASE, "stop_threshold": 1e-9})
    Refiner(make_classifier(), config).refine(make_views(), PRESENT, lambda step: asked.append(step))
    assert asked == []


def test_an_image_without_possible_extras_is_refined_on_its_own_rows() -> None:
    config = RIBConfig(**BASE)
    refiner = Refiner(make_classifier(), config)
    result = refiner.refine(make_views(), PRESENT, lambda step: None)
    expected = oracle(make_classifier(), config, make_views(), lambda step: None)
    assert_equals_oracle(result, expected)


def test_scales_outside_the_loss_and_the_stem_get_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    refiner = Refiner(make_classifier(), RIBConfig(**{**BASE, "loss_scales": (1.0,)}))
    seen: list[tuple[int, bool, bool]] = []
    cams = refiner.network.cams

    def watched(stem: Tensor) -> Tensor:
        seen.append((stem.shape[-1], stem.requires_grad, torch.is_grad_enabled()))
        return cams(stem)

    monkeypatch.setattr(refiner.network, "cams", watched)
    refiner.refine(make_views(), PRESENT, lambda step: None)
    widths = {16: True, 8: False, 24: False}  # of the stem's output at scales 1.0, 0.5, 1.5
    assert seen == [(width, False, learns and step < 3) for step in range(4) for width, learns in widths.items()]


def test_the_stem_sees_the_target_once(monkeypatch: pytest.MonkeyPatch) -> None:
    refiner = Refiner(make_classifier(), RIBConfig(**BASE))
    calls: list[int] = []
    stem = refiner.network.stem
    monkeypatch.setattr(refiner.network, "stem", lambda images: calls.append(len(images)) or stem(images))
    refiner.refine(make_views(), PRESENT, lambda step: None)
    assert calls == [2, 2, 2]


@pytest.mark.parametrize("pooling", ["gndrp", "gap"])
@pytest.mark.parametrize("reads_before_update", [True, False])
def test_a_loss_that_is_not_finite_is_an_error_of_this_image(pooling: str, reads_before_update: bool) -> None:
    config = RIBConfig(**{**BASE, "lr": 1e200, "pooling": pooling})
    with pytest.raises(ImageError, match=r"refinement step [23] of 4"):
        refine(config, make_views(), reads_before_update=reads_before_update)
    views = make_views()
    views[1][0, 0, 0, 0] = math.nan  # scale 0.5, which the loss does not see
    with pytest.raises(ImageError, match="not finite in refinement step 1 of 4"):
        refine(RIBConfig(**BASE), views)


def test_an_error_leaves_the_next_image_unharmed() -> None:
    refiner = Refiner(make_classifier(), RIBConfig(**BASE))
    before = refiner.refine(make_views(), PRESENT, make_extras)
    broken = make_views()
    broken[0][:] = math.nan
    with pytest.raises(ImageError):
        refiner.refine(broken, PRESENT, make_extras)
    after = refiner.refine(make_views(), PRESENT, make_extras)
    assert all(np.array_equal(a, b) for a, b in zip(before.maps["rib"], after.maps["rib"], strict=True))


def test_wrong_arguments_are_refused() -> None:
    refiner = Refiner(make_classifier(), RIBConfig(**BASE))
    with pytest.raises(ValueError, match="without any present class"):
        refiner.refine(make_views(), [], make_extras)
    with pytest.raises(ValueError, match="do not fit 5 classes"):
        refiner.refine(make_views(), [5], make_extras)
    with pytest.raises(ValueError, match="2 views for 3 scales"):
        refiner.refine(make_views()[:2], PRESENT, make_extras)
    with pytest.raises(ValueError, match="precision"):
        Refiner(make_classifier(), RIBConfig(**BASE), "float16")
    unordered = RIBConfig(**BASE).model_copy(update={"scales": (0.5, 1.0)})
    with pytest.raises(ValueError, match=r"must be 1\.0"):
        Refiner(make_classifier(), unordered)
