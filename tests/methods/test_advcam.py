"""AdvCAM of one image against a plain reading of docs/method.md, section 6, and what it promises.

The oracle below takes a forward pass for every class and step, gets the attribution by Grad-CAM with a backward pass of
its own, loops over views and cells' masks, and shares no code with the product but the network's layers. Both run in
float64, so that they agree closely.
"""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ribray.config import AdvCAMConfig
from ribray.errors import ImageError
from ribray.methods import advcam
from ribray.methods.advcam import AdvCAM, Trace, map_weight, steps_of
from ribray.methods.method import require_whole
from ribray.networks import Classifier, build_classifier

CLASSES = 5
PRESENT = [1, 3]
SCALES = (1.0, 0.5, 1.5)
BASE: dict[str, Any] = {"iterations": 4, "regularizer": 30.0, "step_size": 0.3, "scales": SCALES}


def make_classifier(dtype: torch.dtype = torch.float64) -> Classifier:
    torch.manual_seed(0)
    classifier = build_classifier("small", CLASSES, 8)
    torch.nn.init.normal_(classifier.head.weight, std=0.1)
    return classifier.to(dtype)


def make_views(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    views = []
    for scale in SCALES:
        view = torch.randn(3, int(48 * scale), int(64 * scale), generator=generator, dtype=dtype)
        views.append(torch.stack([view, view.flip(-1)]))
    return views


def relative_error(computed: Tensor, expected: Tensor) -> float:
    return float((computed - expected).abs().max() / expected.abs().max())


# --- the oracle ---------------------------------------------------------------------------------------------


def oracle_attribution(features: Tensor, cams: Tensor, index: int) -> Tensor:
    """Grad-CAM of the sum of ReLU(own map), of both views, over the number of positive gradients in the pair."""
    (gradient,) = torch.autograd.grad(cams[:, index].clamp(min=0).sum(), features, retain_graph=True)
    importance = gradient.sum((2, 3)) / (gradient > 0).sum().add(1e-12)  # (2, features)
    first, second = (
        sum(importance[n, k] * features[n, k] for k in range(features.shape[1])).clamp(min=0) for n in range(2)
    )
    return first + torch.flip(second, [1])


def oracle_climb(network: Classifier, pair: Tensor, index: int, steps: int, config: AdvCAMConfig) -> list[Tensor]:
    """Return the attributions of one class at one scale."""
    found: list[Tensor] = []
    for _ in range(steps):
        x = pair.detach().clone().requires_grad_()
        features = network.backbone.features(x)[-1]
        cams = network.head(features)
        attribution = oracle_attribution(features, cams, index)
        found.append(attribution.detach())
        mask = torch.tensor([[float(cell / found[-1].max() > config.score_threshold) for cell in r] for r in found[-1]])
        objective = -config.regularizer * (mask * (attribution - found[0]).abs()).sum()
        for n in range(2):
            for k in range(CLASSES):
                score = cams[n, k].clamp(min=0).mean()
                objective = objective + score if k == index else objective - score
        (gradient,) = torch.autograd.grad(objective, x)
        lowest, highest = (float(np.float32(bound)) for bound in (pair.min(), pair.max()))
        pair = (pair + config.step_size * gradient / (gradient.abs().max() + 1e-12)).clamp(lowest, highest)
    return found


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"regularizer": 0.0},
        {"regularizer": 2000.0, "score_threshold": 0.3},
        {"iterations": 7, "step_size": 0.08},
        {"iterations": 11},
        {"iterations": 1},
    ],
    ids=str,
)
def test_it_equals_a_plain_reading_of_the_method(settings: dict[str, Any]) -> None:
    config = AdvCAMConfig(**{**BASE, **settings})
    classifier, views = make_classifier(), make_views()
    steps = {1: (1, 1, 1), 4: (4, 4, 4), 7: (7, 5, 7), 11: (11, 5, 11)}[config.iterations]
    weight = 2 if config.iterations == 11 else 1
    climbed = AdvCAM(copy.deepcopy(classifier), config).climb(views, PRESENT)
    moved = []
    for scale, view in enumerate(views):
        for place, index in enumerate(PRESENT):
            expected = oracle_climb(classifier, view, index, steps[scale], config)
            moved.append(relative_error(expected[-1], expected[0]))
            assert len(climbed.sums[scale]) == steps[scale]
            for step, found in enumerate(climbed.sums[scale]):
                total = weight * torch.stack(expected[: step + 1]).sum(0)
                assert relative_error(found[place], total) < 1e-9, (scale, index, step)
        cams = classifier.head(classifier.backbone.features(view)[-1]).detach().clamp(min=0)
        assert relative_error(climbed.plain[scale], (cams[0] + cams[1].flip(-1))[PRESENT]) < 1e-12
    assert config.iterations == 1 or min(moved) > 1e-3, "a climb that leads nowhere would not notice a wrong gradient"


def test_iterations_are_fewer_at_the_second_scale_alone() -> None:
    assert steps_of(27, 4) == [27, 13, 27, 27]
    assert [steps_of(iterations, 2)[1] for iterations in (1, 5, 6, 10, 11, 12)] == [1, 5, 5, 5, 5, 6]
    assert steps_of(27, 1) == [27]
    assert [map_weight(iterations) for iterations in (10, 11)] == [1, 2]


def test_what_is_kept_are_the_plain_map_and_weighted_sums_after_every_step() -> None:
    """The second scale has fewer steps; its last sum stays."""
    config = AdvCAMConfig(**{**BASE, "iterations": 7, "keep_steps": True})
    method = AdvCAM(make_classifier(), config)
    climbed, refined = (call(make_views(), PRESENT[::-1]) for call in (method.climb, method.refine))
    require_whole(refined, config, PRESENT)
    assert (refined.steps, refined.stop_reason, len(refined.by_step["advcam"])) == (7, "finished", 7)
    for scale, (plain, sums) in enumerate(zip(climbed.plain, climbed.sums, strict=True)):
        assert np.array_equal(refined.maps["cam"][scale], plain.float().numpy())
        assert np.array_equal(refined.maps["advcam"][scale], sums[-1].float().numpy())
        for step, maps in enumerate(refined.by_step["advcam"]):
            assert np.array_equal(maps[scale], sums[min(step, len(sums) - 1)].float().numpy())
    without = AdvCAM(make_classifier(), config.model_copy(update={"keep_steps": False})).refine(make_views(), PRESENT)
    assert not without.by_step
    assert all(np.array_equal(*pair) for pair in zip(without.maps["advcam"], refined.maps["advcam"], strict=True))


def test_the_work_of_an_image_is_counted_by_its_classes() -> None:
    config = AdvCAMConfig(iterations=27)
    one, two = (AdvCAM.cost(config, 1.0, classes, 0) for classes in (1, 2))
    pixels = [2.0, 0.5, 4.5, 8.0]
    moves = sum(size * (steps - 1) for size, steps in zip(pixels, (27, 13, 27, 27), strict=True))
    assert one == (sum(pixels) + 2 * moves, sum(pixels) + moves, moves / 2, 47)
    assert two == (sum(pixels) + 4 * moves, sum(pixels) + 2 * moves, moves, 92)  # the first pass is shared


# --- what it promises ---------------------------------------------------------------------------------------


def test_classes_climb_alone_however_many_are_in_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their largest gradient, clip range, counts and first attribution stay their own."""
    config, views = AdvCAMConfig(**BASE), make_views()
    found = {}
    for pixels in (0, 10**9):
        monkeypatch.setitem(advcam._PIXELS_AT_ONCE, "cpu", pixels)
        network = AdvCAM(make_classifier(), config)
        batches: list[int] = []
        cams = network.frozen.cams
        monkeypatch.setattr(network.frozen, "cams", lambda x, see=cams, seen=batches: seen.append(len(x)) or see(x))
        found[pixels] = network.climb(views, [0, 1, 3])
        assert set(batches) == ({2} if not pixels else {2, 6})
    for one, other in zip(found[0].sums, found[10**9].sums, strict=True):
        assert relative_error(one[-1], other[-1]) < 1e-12
    alone = [AdvCAM(make_classifier(), config).climb(views, [index]) for index in (0, 1, 3)]
    for scale, sums in enumerate(found[10**9].sums):
        for place, single in enumerate(alone):
            assert relative_error(sums[-1][place], single.sums[scale][-1][0]) < 1e-12


def test_the_first_pass_is_shared_and_the_last_one_has_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(advcam._PIXELS_AT_ONCE, "cpu", 0)
    method = AdvCAM(make_classifier(), AdvCAMConfig(**BASE))
    passes: list[bool] = []
    cams = method.frozen.cams

    def watched(images: Tensor) -> Tensor:
        passes.append(images.requires_grad)
        return cams(images)

    monkeypatch.setattr(method.frozen, "cams", watched)
    method.climb(make_views(), PRESENT)
    one_scale = [True, *[True, True, False] * len(PRESENT)]
    assert passes == one_scale * len(SCALES)


def test_the_network_is_left_as_it_was_and_gets_no_gradient() -> None:
    classifier = make_classifier()
    before = copy.deepcopy(classifier.state_dict())
    AdvCAM(classifier, AdvCAMConfig(**BASE)).climb(make_views(), PRESENT)
    assert all(torch.equal(tensor, before[name]) for name, tensor in classifier.state_dict().items())
    assert all(parameter.grad is None for parameter in classifier.parameters())
    assert any(parameter.requires_grad for parameter in classifier.parameters())


def test_the_pair_stays_within_the_range_that_it_had_before_the_step() -> None:
    trace, views = Trace(), make_views()
    AdvCAM(make_classifier(), AdvCAMConfig(**{**BASE, "step_size": 3.0})).climb(views, PRESENT, trace)
    for (scale, _), values in trace.values.items():
        lowest, highest = float(views[scale].min()), float(views[scale].max())
        for pair in values["manipulated"]:
            assert pair.min() >= np.float32(lowest) and pair.max() <= np.float32(highest)
            lowest, highest = float(pair.min()), float(pair.max())
        assert len(values["manipulated"]) == len(values["cam"]) == 4  # a traced climb takes the last step, too


def test_an_image_whose_scores_are_constant_has_nowhere_to_climb() -> None:
    classifier = make_classifier()
    torch.nn.init.constant_(classifier.head.weight, -1.0)  # no map is positive anywhere
    with pytest.raises(ImageError, match="no class activation map is positive"):
        AdvCAM(classifier, AdvCAMConfig(**BASE)).climb(make_views(), PRESENT)


def test_a_class_that_is_nowhere_positive_beside_one_that_is_has_a_map_of_zeros() -> None:
    classifier = make_classifier()
    torch.nn.init.constant_(classifier.head.weight[3], -1.0)
    climbed = AdvCAM(classifier, AdvCAMConfig(**BASE)).climb(make_views(), PRESENT)
    for sums in climbed.sums:
        assert sums[-1][0].max() > 0
        assert torch.equal(sums[-1][1], torch.zeros_like(sums[-1][1]))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_maps_that_are_not_finite_are_an_error_of_this_image_alone(value: float) -> None:
    method = AdvCAM(make_classifier(), AdvCAMConfig(**BASE))
    before = method.climb(make_views(), PRESENT)
    views = make_views()
    views[1][0, 0, 3, 3] = value
    with pytest.raises(ImageError, match="not finite"):
        method.climb(views, PRESENT)
    after = method.climb(make_views(), PRESENT)
    assert all(torch.equal(one[-1], other[-1]) for one, other in zip(before.sums, after.sums, strict=True))


def test_bfloat16_is_near_float32_and_another_precision_is_refused() -> None:
    """The first attribution: afterwards the images drift apart by design (docs/method.md)."""
    views = make_views(torch.float32)
    exact, reduced = (
        AdvCAM(make_classifier(torch.float32), AdvCAMConfig(**BASE), precision).climb(views, PRESENT)
        for precision in ("float32", "bfloat16")
    )
    for one, other in zip(exact.sums, reduced.sums, strict=True):
        assert one[-1].dtype == other[-1].dtype == torch.float32
        assert 0 < relative_error(other[0], one[0]) < 0.05
        assert other[-1].isfinite().all()
    with pytest.raises(ValueError, match="precision is float32 or bfloat16"):
        AdvCAM(make_classifier(), AdvCAMConfig(**BASE), "float16")
