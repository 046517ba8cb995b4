"""Predicted beats against reference annotations."""

import json

import numpy as np
import pytest

from data.known import CLASSES as AAMI
from experiments.files import nan_to_null
from finetune.reference import Annotated, compare

RATE_HZ = 100
CLASSES = AAMI["arrhythmia"]


def annotated(**beats: str) -> Annotated:
    """s100="N": a beat of class N at sample 100."""
    sample = [int(name.removeprefix("s")) for name in beats]
    return Annotated("a.atr", np.array(sample, np.int64), np.array(list(beats.values())))


def test_peaks_within_150_ms_are_matched() -> None:
    reference = annotated(s100="N", s200="V", s300="N", s400="S")
    peak = np.array([85, 216, 300, 350, 404])
    found = compare(reference, peak, np.ones(5, bool), np.array([0, 2, 2, 0, 0]), CLASSES, RATE_HZ)  # 216 is too far
    assert (found.num_reference, found.num_found, found.num_matched) == (4, 5, 3)
    assert (found.sensitivity, found.positive_predictivity) == (3 / 4, 3 / 5)
    assert found.offset_ms == 40  # of 150, 0 and 40
    assert found.confusion is not None
    assert (found.confusion[0, 0], found.confusion[0, 2], found.confusion[1, 0]) == (1, 1, 1)
    assert found.confusion.sum() == 3 and found.left_out == {}
    content = found.to_json()
    assert content["recall"] == {"N": 0.5, "S": 0.0, "V": None, "F": None, "Q": None}
    assert json.loads(json.dumps(content, allow_nan=False)) == nan_to_null(content)


def test_what_was_not_classified_or_has_no_class_here_is_counted_apart() -> None:
    reference = annotated(s100="N", s200="Q", s300="Q", s400="S")
    classified = np.array([True, True, True, False])
    found = compare(reference, np.array([100, 200, 300, 400]), classified, np.array([0, 1, 2]), CLASSES[:4], RATE_HZ)
    assert found.confusion is not None and found.confusion.tolist()[0] == [1, 0, 0, 0] and found.confusion.sum() == 1
    assert found.left_out == {
        "annotated Q, which is none of the model's classes": 2,
        "too near the record's end to be classified": 1,
    }


def test_classes_that_are_not_aamis_have_no_matrix() -> None:
    found = compare(annotated(s100="N"), np.array([103]), np.ones(1, bool), np.array([1]), ("normal", "MI"), RATE_HZ)
    assert found.confusion is None and found.sensitivity == 1
    assert "confusion" not in found.to_json()


def test_nothing_matched_has_no_offset() -> None:
    found = compare(annotated(s100="N"), np.array([300]), np.ones(1, bool), np.array([1]), CLASSES, RATE_HZ)
    assert (found.sensitivity, found.positive_predictivity, found.offset_ms) == (0, 0, None)


@pytest.mark.parametrize("seed", range(5))
def test_every_peak_and_every_beat_is_matched_at_most_once(seed: int) -> None:
    random = np.random.default_rng(seed)
    sample = np.unique(random.integers(0, 3000, 60))
    peak = np.unique((sample + random.integers(-30, 31, len(sample))).clip(0))
    names = np.array(CLASSES)[random.integers(0, 5, len(sample))]
    found = compare(Annotated("a.atr", sample, names), peak, np.ones(len(peak), bool), peak % 5, CLASSES, RATE_HZ)
    near = np.abs(sample[:, None] - peak) <= 15
    assert found.num_matched <= min(near.any(axis=1).sum(), near.any(axis=0).sum())
    assert found.num_matched > 0.5 * near.any(axis=1).sum()
    assert found.confusion is not None and found.confusion.sum() == found.num_matched
