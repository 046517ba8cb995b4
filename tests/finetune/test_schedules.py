import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.schedules import SCHEDULES, Scales, scales

STAGES = ("stem", "block1", "block2", "block3", "block4")
RATIO = 0.25
PROGRESS = (0.0, 0.09, 0.1, 0.2, 0.3, 0.4, 0.45, 0.5, 0.75, 0.99)

NUM_THAWED: dict[str, tuple[int, ...]] = {
    "frozen": (0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
    "full": (5, 5, 5, 5, 5, 5, 5, 5, 5, 5),
    "gradual": (0, 1, 1, 2, 3, 4, 5, 5, 5, 5),
    "lp_ft": (0, 0, 0, 0, 5, 5, 5, 5, 5, 5),
}
"""Of each schedule, how many of five stages learn, counted from the output, at each of `PROGRESS`."""


def golden(num_thawed: int) -> Scales:
    return {stage: RATIO if place >= len(STAGES) - num_thawed else None for place, stage in enumerate(STAGES)}


def test_every_schedule_is_in_the_golden_table() -> None:
    assert NUM_THAWED.keys() == SCHEDULES.keys()


@pytest.mark.parametrize("place", range(len(PROGRESS)), ids=lambda place: f"at {PROGRESS[place]}")
@pytest.mark.parametrize("name", NUM_THAWED)
def test_golden_table(name: str, place: int) -> None:
    found = scales(name, PROGRESS[place], STAGES, RATIO)
    assert found == golden(NUM_THAWED[name][place])
    assert list(found) == list(STAGES)
    assert "head" not in found


@pytest.mark.parametrize("name", SCHEDULES)
@given(st.floats(0, 1), st.floats(0, 1), st.integers(0, 9), st.floats(1e-3, 1))
def test_a_stage_that_learns_goes_on_learning_and_later_ones_learn_too(
    name: str, one: float, other: float, num_stages: int, ratio: float
) -> None:
    stages = [f"stage{number}" for number in range(num_stages)]
    before, after = (scales(name, progress, stages, ratio) for progress in sorted((one, other)))
    thawed = [scale is not None for scale in before.values()]
    assert thawed == sorted(thawed)
    assert all(after[stage] is not None for stage in stages if before[stage] is not None)
    assert {scale for scale in after.values() if scale is not None} <= {ratio}


def test_an_unknown_schedule_lists_the_choices() -> None:
    with pytest.raises(ValueError, match=f"unknown schedule 'melt'; choose from {', '.join(SCHEDULES)}"):
        scales("melt", 0.0, STAGES, RATIO)
