"""What a study makes of its results: values, best, front, and what is compared."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

import models
from data.split import Split
from data.synthetic import synthetic_arrhythmia
from experiments import results
from experiments.results import RunResult
from experiments.space import Dimension, Space
from finetune.recipe import Recipe
from finetune.studies import Study
from finetune.train import Arm
from models.encoder import EncoderSpec
from tests.samples import checkpoint_of, study_of

SPACE = Space(name="a", about="", dimensions=(Dimension(name="lr", low=1e-3, high=1e-2),))
SPEC = EncoderSpec(name="resnet1d", options={"width": 2})


@pytest.fixture
def study(tmp_path: Path) -> Study:
    beats = synthetic_arrhythmia(50, 0)
    split = Split(train=beats, validation=beats, load_test=lambda: beats, protocol="beat-random", badge="beat-random")
    torch.manual_seed(0)
    transfer = Arm(name="transfer", spec=SPEC, checkpoint=checkpoint_of(SPEC, models.build(SPEC)), origin="a.pt")
    arms = (transfer, Arm(name="scratch", spec=SPEC))
    objectives = ("recall_S", "precision_S")
    return study_of(arms=arms, split=split, folder=tmp_path, space=SPACE, objectives=objectives)


def names(found: Sequence[RunResult]) -> list[object]:
    """Not the results themselves: what is not defined in them is NaN, and equals nothing."""
    return [result.config["trial"] for result in found]


def add(study: Study, arm: Arm, found: int, alarms: int) -> RunResult:
    """A trial that finds so many of 20 S beats, with so many false alarms of 20 N beats."""
    confusion = np.zeros((5, 5), int)
    confusion[0, :2], confusion[1, :2] = (20 - alarms, alarms), (20 - found, found)
    context = study.context("search", trial=f"{arm.name} {found} {alarms}", number=study.num_started(arm))
    cost = {"epochs": 3, "beats": 10, "seconds": 1.0}
    result = context.result(arm, Recipe(), 0, "validation", confusion, cost)
    results.append(study.store, result)
    return result


def test_best_is_the_highest_mean_and_lies_on_the_front(study: Study) -> None:
    arm = study.arms[0]
    careful, eager, between, beaten = (add(study, arm, *trial) for trial in ((5, 0), (20, 20), (16, 2), (15, 3)))
    searched = study.searched(arm)
    assert study.values(np.array(between.confusion)) == pytest.approx((16 / 20, 16 / 18))
    assert names([study.best(searched)]) == names([between])
    assert names(study.front(searched)) == names([eager, between, careful])
    assert names([beaten])[0] in names(searched)
    assert study.searched(study.arms[1]) == []


def test_as_many_first_trials_are_compared_as_every_arm_has_tried(study: Study) -> None:
    transfer, scratch = study.arms

    def compared() -> tuple[list[object], list[object]]:
        return names(study.compared(transfer)), names(study.compared(scratch))

    ten = [add(study, transfer, found, 0) for found in range(1, 11)]
    assert compared() == (names(ten), [])  # scratch has not begun
    four = [add(study, scratch, found, 0) for found in range(1, 5)]
    assert compared() == (names(ten[:4]), names(four))
    study.fail(scratch, 4, {"lr": 0.1}, "the loss became nan")
    assert compared() == (names(ten[:5]), names(four))
    study.fail(transfer, 10, {"lr": 0.1}, "the loss became nan")  # later than those that are compared
    assert compared() == (names(ten[:5]), names(four))
    assert [failure["why"] for failure in study.failures()] == ["the loss became nan"] * 2
    assert [failure["arm"] for failure in study.failures(transfer)] == ["transfer"]


def test_who_started_first_is_compared_whoever_ended_first(study: Study) -> None:
    transfer, scratch = study.arms
    for number in (3, 0, 2, 1):
        context = study.context("search", trial=f"t{number}", number=number)
        confusion = np.eye(5, dtype=int) * (number + 1)
        results.append(study.store, context.result(transfer, Recipe(), 0, "validation", confusion, {}))
    add(study, scratch, 3, 0)
    add(study, scratch, 4, 0)
    assert names(study.compared(transfer)) == ["t0", "t1"]
    assert study.num_started(transfer) == 4


def test_results_of_other_studies_are_not_its_own(study: Study, tmp_path: Path) -> None:
    other = study_of(arms=study.arms, split=study.split, folder=tmp_path, space=SPACE, name="other")
    add(other, other.arms[0], 3, 3)
    other.fail(other.arms[0], 1, {}, "why")
    assert study.searched(study.arms[0]) == [] and study.failures() == []
