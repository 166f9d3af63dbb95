"""How refinements ended: what is counted, and when settings are doubted."""

import pytest

from ribray.config import RIBConfig
from ribray.methods.stop_reasons import EXPLOSION, FINISHED, TARGET_LOSS, StopTally, stop_hint, stopped_early


def test_refinements_are_counted_by_reason_and_images_without_steps_are_not():
    tally = StopTally(RIBConfig(iterations=10))
    assert tally.summary() == {"stop_reasons": {FINISHED: 0, TARGET_LOSS: 0, EXPLOSION: 0}, "mean_steps": None}
    for reason, steps in ((FINISHED, 10), (EXPLOSION, 4), (EXPLOSION, 10), (TARGET_LOSS, 2), (FINISHED, 0)):
        tally.add(reason, steps)
    assert tally.summary() == {"stop_reasons": {FINISHED: 1, TARGET_LOSS: 1, EXPLOSION: 2}, "mean_steps": 6.5}


def test_a_target_loss_passed_in_the_last_step_ends_nothing():
    tally = StopTally(RIBConfig(iterations=3))
    tally.add(TARGET_LOSS, 3)
    tally.add(TARGET_LOSS, 2)
    assert tally.counts == {FINISHED: 1, TARGET_LOSS: 1, EXPLOSION: 0}


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        ({}, None),
        ({FINISHED: 5, EXPLOSION: 0}, None),
        ({FINISHED: 15, EXPLOSION: 10, TARGET_LOSS: 3}, "explosion test 10 of 28, target loss 3"),
        ({FINISHED: 1, TARGET_LOSS: 3}, "target loss 3 of 4"),
    ],
)
def test_only_early_ends_are_told(counts, told):
    assert stopped_early(counts) == told


def test_settings_are_doubted_where_most_images_ended_early():
    assert stop_hint({FINISHED: 14, EXPLOSION: 14}, 10) is None
    assert stop_hint({}, 10) is None
    assert stop_hint({TARGET_LOSS: 3}, 1) is None  # there is no step to be missed
    assert stop_hint({FINISHED: 13, EXPLOSION: 15}, 10) == (
        "15 of 28 images did not get through their 10 steps (explosion test 15 of 28): the settings may not suit this "
        "network; try a smaller lr, or a larger explode_ratio (the study settings_for_a_network compares them)."
    )


def test_the_setting_named_is_that_of_the_test_that_ended_them():
    assert "or a larger stop_threshold (" in stop_hint({TARGET_LOSS: 3}, 10)
    assert "or a larger explode_ratio or a larger stop_threshold (" in stop_hint({EXPLOSION: 9, TARGET_LOSS: 3}, 10)
