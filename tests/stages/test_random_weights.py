"""Weights that a training draws at random come from its seed alone: the same recipe gives the same bytes twice."""

from collections.abc import Callable

import pytest
import safetensors.torch
import torch
from rich.console import Console
from torch import Tensor, nn

from ribray.config import ClassifierConfig, load_experiment
from ribray.networks.weights import drawn_with
from ribray.pipeline.stage import Context
from ribray.runs.run import Run
from ribray.stages import STAGES, classifier, irn, segmentation
from ribray.stages.refine import _unit_costs
from ribray.tracking import Tracker
from tests.drawn import folder, recipe


def of_classifier(context: Context) -> nn.Module:
    return classifier.start_network(context.experiment.classifier, len(context.training_set.classes))[0]


STARTS: dict[str, Callable[[Context], nn.Module]] = {
    "classifier": of_classifier,
    "irn": irn._start,
    "segmentation": segmentation._start,  # of the first network and of the one that is trained again
}


@pytest.fixture
def context_of(tmp_path) -> Callable[..., Context]:
    folder(tmp_path / "data")

    def make(*settings: str) -> Context:
        small = {"backbone": "small", "output_stride": 8, "hidden": 8, "retrain": True}
        experiment = load_experiment(
            str(recipe(tmp_path / "recipe.yaml", tmp_path / "data", segmentation=small)), settings
        )
        run = Run(tmp_path / "run")
        return Context(experiment, run, STAGES, Console(quiet=True), Tracker(experiment, run))

    return make


def content(network: nn.Module) -> bytes:
    return safetensors.torch.save({name: tensor.contiguous() for name, tensor in network.state_dict().items()})


@pytest.mark.parametrize(
    ("training", "backbone"), [*((training, "small") for training in STARTS), ("classifier", "resnet18")]
)
def test_random_weights_are_the_same_whatever_was_drawn_before(training, backbone, context_of):
    backbones = [f"classifier.backbone={backbone}", f"segmentation.backbone={backbone}"]
    contents = []
    for before in (1, 2):
        torch.manual_seed(before)
        torch.rand(before)
        state = torch.get_rng_state()
        contents.append(content(STARTS[training](context_of(*backbones, "seed=3"))))
        assert torch.equal(torch.get_rng_state(), state)
    assert contents[0] == contents[1]
    assert content(STARTS[training](context_of(*backbones, "seed=4"))) != contents[0]


@pytest.mark.parametrize("weights", ["none", "synthetic"])
def test_the_classifiers_head_is_drawn_with_the_seed_whatever_the_backbone_is(weights):
    config = ClassifierConfig(backbone="small", output_stride=8, weights=weights, seed=5)
    head = torch.empty(4, 128, 1, 1)
    torch.manual_seed(5)
    nn.init.kaiming_uniform_(head, a=5**0.5)
    network, _ = classifier.start_network(config, 4)
    assert torch.equal(network.head.weight, head)
    first: Tensor = network.backbone.conv1.weight
    assert abs(torch.corrcoef(torch.stack([head.flatten()[:500], first.flatten()[:500]]))[0, 1]) < 0.2


def test_timing_a_plan_draws_nothing_from_the_common_generator(context_of):
    state = torch.get_rng_state()
    context = context_of()
    assert min(_unit_costs(context, context.experiment.refine)) > 0
    assert torch.equal(torch.get_rng_state(), state)


def test_a_block_leaves_the_common_generator_as_it_was_also_when_it_fails():
    state = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), drawn_with(1):
        torch.rand(3)
        _ = 1 / 0
    assert torch.equal(torch.get_rng_state(), state)
