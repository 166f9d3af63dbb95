"""Published times."""

from ribray.evaluation.published_times import refinement_times


def test_the_paper_took_32_and_43_minutes_for_voc_train():
    assert [(time.images, time.minutes) for time in refinement_times()] == [(1464, 32.0), (1464, 43.0)]
    assert [time.devices for time in refinement_times()] == ["four Quadro RTX 8000", "four V100"]
    assert {time.data for time in refinement_times()} == {"VOC 2012 train"}
