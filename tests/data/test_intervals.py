import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.intervals import MAX_LOG_RATIO, RATIOS, log_ratios, rr_before_after


def test_the_intervals_of_a_short_record() -> None:
    before, after = rr_before_after(np.array([10, 110, 190, 340]))
    assert before.tolist() == [100, 100, 80, 150]
    assert after.tolist() == [100, 80, 150, 150]


def test_one_beat_has_no_interval() -> None:
    with pytest.raises(ValueError, match="two beats"):
        rr_before_after(np.array([10]))


@given(st.lists(st.integers(20, 400), min_size=2, max_size=40))
def test_ratios_as_a_loop_would_make_them(gaps: list[int]) -> None:
    before, after = rr_before_after(np.cumsum([0, *gaps]))
    made = log_ratios(before, after)
    assert made.shape == (len(gaps) + 1, len(RATIOS)) and made.dtype == np.float32
    for beat in range(len(before)):
        last = before[max(0, beat - 9) : beat + 1].mean()
        previous = before[max(0, beat - 1)]
        expected = [
            before[beat] / last,
            after[beat] / last,
            before[beat] / after[beat],
            previous / last,
            before[beat] / before.mean(),
            after[beat] / before.mean(),
        ]
        np.testing.assert_allclose(made[beat], np.clip(np.log(expected), -MAX_LOG_RATIO, MAX_LOG_RATIO), atol=1e-6)


@given(st.lists(st.integers(60, 150), min_size=12, max_size=40), st.integers(3, 8))
def test_a_ratio_that_does_not_look_ahead_does_not_see_the_future(gaps: list[int], beat: int) -> None:
    whole = log_ratios(*rr_before_after(np.cumsum([0, *gaps])))
    other = log_ratios(*rr_before_after(np.cumsum([0, *gaps[:beat], *(3 * gap for gap in gaps[beat:])])))
    for column, ratio in enumerate(RATIOS):
        same = whole[beat, column] == other[beat, column]
        assert same or ratio.looks_ahead, ratio.name
    assert whole[beat, 4] != other[beat, 4]


def test_two_beats_on_one_sample_are_finite() -> None:
    ratios = log_ratios(*rr_before_after(np.array([0, 100, 100, 200])))
    assert np.isfinite(ratios).all()
