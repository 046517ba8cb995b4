from dataclasses import replace

import numpy as np
import pytest
import torch

from data.beats import Beats, measure_length, scale_and_pad
from data.synthetic import synthetic_arrhythmia


@pytest.fixture
def beats() -> Beats:
    return synthetic_arrhythmia(300, seed=1)


def test_length_is_that_before_the_trailing_zeros() -> None:
    signal = torch.tensor([[0.0, 1.0, 0.0, 0.5, 0.0, 0.0], [0.0] * 6, [1.0] * 6]).unsqueeze(1)
    assert measure_length(signal).tolist() == [4, 0, 6]


def test_length_counts_the_longest_lead() -> None:
    assert measure_length(torch.tensor([[[1.0, 0, 0, 0], [1, 1, 1, 0]]])).tolist() == [3]


def test_scaling_looks_at_the_beat_only_and_pads_with_zeros() -> None:
    rows = np.array([[2.0, 4.0, 3.0, 99.0], [5.0, 5.0, 5.0, -1.0]])
    expected = np.array([[0.0, 1.0, 0.5, 0.0], [0.0] * 4])
    np.testing.assert_allclose(scale_and_pad(rows, np.array([3, 3])), expected)


def test_counts_follow_the_classes(beats: Beats) -> None:
    counts = beats.counts()
    assert tuple(counts) == ("N", "S", "V", "F", "Q")
    assert sum(counts.values()) == len(beats) == 300
    assert counts["F"] == int((beats.labels == 3).sum())


def test_selection_takes_every_tensor_and_renames_the_content(beats: Beats) -> None:
    index = torch.tensor([7, 2, 250])
    some = beats.select(index)
    for name in ("signal", "target", "valid_length", "group", "intervals"):
        assert torch.equal(getattr(some, name), getattr(beats, name)[index])
    assert some.fingerprint == beats.select(index).fingerprint
    assert len({beats.fingerprint, some.fingerprint, beats.select(index.flip(0)).fingerprint}) == 3


def test_a_mask_selects_like_its_positions(beats: Beats) -> None:
    mask = beats.labels == 2
    assert beats.select(mask).fingerprint == beats.select(mask.nonzero().squeeze(1)).fingerprint


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("signal", torch.zeros(300, 187)),
        ("signal", torch.zeros(300, 1, 187, dtype=torch.float64)),
        ("signal", torch.zeros(300, 187, 2).transpose(1, 2)),
        ("target", torch.zeros(299, dtype=torch.int64)),
        ("target", torch.full((300,), 5)),
        ("target", torch.full((300,), -1)),
        ("valid_length", torch.zeros(300)),
        ("group", torch.zeros(300, 1, dtype=torch.int64)),
        ("intervals", torch.zeros(299, 6)),
    ],
)
def test_tensors_that_do_not_fit_are_refused(beats: Beats, field: str, wrong: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=field):
        replace(beats, **{field: wrong})


def test_unlabelled_beats_say_so(beats: Beats) -> None:
    with pytest.raises(ValueError, match="no labels"):
        replace(beats, target=None).counts()


def test_notes_say_what_reading_did() -> None:
    whole = synthetic_arrhythmia(300, seed=0)
    beats = replace(whole, source="a.csv", dropped={"too short": 1200}, remarks=("cropped",))
    assert beats.notes == ("a.csv: dropped 1,200 beats: too short", "a.csv: cropped")
    assert whole.notes == ()
