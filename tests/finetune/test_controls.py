from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import data
from data.beats import Beats
from data.split import Split
from experiments.metrics import confusion_matrix, macro_recall, recall_per_class
from finetune.controls import CONTROLS, Control, controls_for, features, linear
from finetune.train import Context

CONTEXT = Context(dataset="d", protocol="p", badge="b", classes=("N", "S", "V", "F", "Q"))


@pytest.fixture(scope="module")
def split() -> Split:
    """Beats whose class is the sign pattern of two ratios, of eight patients."""
    found = data.load_split("synthetic-arrhythmia", "patient", Path(), 0)
    return replace(found, train=told_by_ratios(found.train), validation=told_by_ratios(found.validation))


def told_by_ratios(beats: Beats) -> Beats:
    ratios = torch.randn(len(beats), 6, generator=torch.Generator().manual_seed(1))
    target = (ratios[:, 0] > 0).long() + 2 * (ratios[:, 1] > 1).long()
    return replace(beats, intervals=ratios, target=target)


@pytest.mark.parametrize("name", CONTROLS)
def test_a_control_is_recorded_like_any_arm_and_has_no_recipe(name: str, split: Split) -> None:
    validation, tested = Control(name=name).run(split, split.validation, 3, CONTEXT)
    assert (validation.part, tested.part, tested.arm, tested.seed) == ("validation", "test", name, 3)
    assert validation.confusion == tested.confusion
    assert (tested.encoder, tested.source, tested.config) == (None, None, {"arch": "none"})
    assert np.sum(tested.confusion) == len(split.validation)


def test_the_majority_is_that_of_the_training_part(split: Split) -> None:
    _, tested = Control(name="majority").run(split, split.validation, 0, CONTEXT)
    predicted = np.array(tested.confusion).sum(0)
    assert predicted.argmax() == split.train.labels.bincount().argmax() and np.count_nonzero(predicted) == 1


def test_linear_learns_what_ratios_tell_and_weighs_all_classes_alike(split: Split) -> None:
    held_out = split.validation
    confusion = confusion_matrix(held_out.labels.numpy(), linear(split.train)(held_out), held_out.num_classes)
    assert macro_recall(confusion) > 0.9
    assert np.nanmin(recall_per_class(confusion)) > 0.8


def test_linear_is_only_there_where_beats_carry_their_intervals(split: Split) -> None:
    without = replace(split.train, intervals=None)
    assert [control.name for control in controls_for(split.train)] == ["majority", "linear"]
    assert [control.name for control in controls_for(without)] == ["majority"]
    with pytest.raises(ValueError, match="do not carry the 6 RR ratios"):
        features(without)


def test_linear_works_without_patients_and_with_a_handful_of_beats(split: Split) -> None:
    few = split.train.select(torch.arange(40))
    answer = linear(replace(few, group=None))(split.validation)
    assert answer.shape == (len(split.validation),) and set(answer) <= set(range(5))


def test_linear_on_the_inter_patient_split(heart_data_dir: Path) -> None:
    split = data.load_split("mitdb", "ds1-ds2", heart_data_dir, 0)
    test = split.load_test()
    confusion = confusion_matrix(test.labels.numpy(), linear(split.train)(test), test.num_classes)
    assert macro_recall(confusion) > 0.68
