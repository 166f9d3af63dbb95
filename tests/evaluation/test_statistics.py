"""Mean and sample standard deviation, against known values and against numpy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ribray.evaluation.statistics import Summary, summarise


def test_the_deviation_is_that_of_a_sample():
    assert summarise([2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]) == Summary(5.0, pytest.approx((32 / 7) ** 0.5), 8)


def test_a_single_value_has_no_deviation():
    assert summarise([56.4]) == Summary(56.4, None, 1)


def test_equal_values_do_not_deviate():
    assert summarise([0.1] * 3) == Summary(0.1, 0.0, 3)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30))
def test_as_numpy_computes_it(values):
    summary = summarise(values)
    assert summary.mean == pytest.approx(np.mean(values), abs=1e-6)
    assert summary.std == pytest.approx(np.std(values, ddof=1), abs=1e-6)
