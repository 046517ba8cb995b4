import numpy as np
import pytest

from experiments.metrics import nested_difference
from finetune.groups import group_arms
from finetune.recipe import Recipe
from finetune.rows import make_rows
from tests.benchmarks.verdicts import DESIGNS, LUCK, REALISTIC, Luck, false_alarms, judge, simulate, words_of
from tests.samples import pretrained_arm, results_of

NUM_STUDIES = 1000
NOISE = 0.02
"""Nearly three standard errors of a share of 5 % in as many studies."""
NORMAL = [luck for luck in LUCK if luck.draw is REALISTIC.draw]


@pytest.mark.parametrize("design", DESIGNS, ids=str)
@pytest.mark.parametrize("luck", NORMAL, ids=lambda luck: luck.name)
def test_without_a_difference_transfer_is_rarely_said_to_help(design: tuple[int, int], luck: Luck) -> None:
    judged = judge(simulate(design, luck, 0.0, NUM_STUDIES), 0.0)
    assert judged.helps <= 0.05 and judged.hurts <= 0.05
    assert judged.covered >= 0.93 - NOISE / 2


@pytest.mark.parametrize("design", DESIGNS, ids=str)
def test_intervals_of_realistic_studies_hold_the_truth_as_often_as_they_say(design: tuple[int, int]) -> None:
    assert judge(simulate(design, REALISTIC, 0.01, NUM_STUDIES, seed=1), 0.01).covered == pytest.approx(0.95, abs=0.03)


@pytest.mark.parametrize("luck", LUCK, ids=lambda luck: luck.name)
def test_no_luck_leaves_intervals_that_hold_the_truth_much_less_often(luck: Luck) -> None:
    """Skew costs most: of few seeds the mean is as skewed as they are."""
    assert judge(simulate((3, 8), luck, 0.0, NUM_STUDIES), 0.0).covered >= 0.9


@pytest.mark.parametrize(("design", "power"), [((1, 8), 0.85), ((3, 8), 0.75), ((5, 8), 0.9)], ids=str)
def test_a_real_difference_is_found_and_not_turned_round(design: tuple[int, int], power: float) -> None:
    better = judge(simulate(design, REALISTIC, 0.02, NUM_STUDIES), 0.02)
    worse = judge(simulate(design, REALISTIC, -0.02, NUM_STUDIES), -0.02)
    assert better.helps >= power and worse.hurts >= power
    assert better.hurts <= 0.005 and worse.helps <= 0.005


def test_holm_keeps_the_false_alarms_of_several_arms_to_the_level() -> None:
    single, corrected = false_alarms((3, 8), NUM_STUDIES)
    assert corrected <= 0.05 + NOISE / 2 < single


@pytest.mark.parametrize("design", DESIGNS, ids=str)
def test_rows_of_a_comparison_say_what_is_judged_here(design: tuple[int, int]) -> None:
    """Recalls are shares of 1,000 beats, and a study stands at each share of labels."""
    studies = simulate(design, REALISTIC, 0.01, 5).round(3)
    scratch, transfer = group_arms([pretrained_arm("masked", seed) for seed in range(design[0])], (Recipe(),))[1:]
    level, results = np.linspace(0.6, 0.7, design[1]).round(3), []
    for number, study in enumerate(studies, start=1):
        results += results_of(scratch, {(0, k): recall for k, recall in enumerate(level)}, number / 10)
        recalls = {(p, k): level[k] + study[p, k] for p, k in np.ndindex(design)}
        results += results_of(transfer, recalls, number / 10)
    rows = make_rows([scratch, transfer], [number / 10 for number in range(1, 6)], results)[1::2]
    for row, study in zip(rows, studies, strict=True):
        expected = nested_difference(study)
        assert row.difference is not None and row.verdict == words_of(expected, design[0])
        assert (row.difference.mean, row.difference.low) == pytest.approx((expected.mean, expected.low))
