from dataclasses import replace

import numpy as np
import pytest
import torch

from data.beats import Beats, concatenate, measure_length, scale_and_pad
from data.synthetic import synthetic_arrhythmia, synthetic_ptb


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


def with_groups(beats: Beats, *group: int) -> Beats:
    return replace(beats.select(torch.arange(len(group))), group=torch.tensor(group), source=f"source {group}")


def test_sources_are_joined_in_order_and_named(beats: Beats) -> None:
    ptb = replace(synthetic_ptb(50, 0), source="b", dropped={"too short": 2}, remarks=("cropped",))
    joined = concatenate([replace(beats, source="a"), ptb])
    assert torch.equal(joined.signal, torch.cat([beats.signal, ptb.signal]))
    assert torch.equal(joined.valid_length, torch.cat([beats.valid_length, ptb.valid_length]))
    assert joined.source == "a + b"
    assert (joined.dropped, joined.remarks) == ({"b: too short": 2}, ("b: cropped",))
    assert len({joined.fingerprint, beats.fingerprint, concatenate([ptb, beats]).fingerprint}) == 3
    assert concatenate([beats, ptb]).fingerprint == joined.fingerprint
    assert concatenate([beats]) is beats


def test_patients_of_different_sources_differ_and_the_unknown_stay_unknown(beats: Beats) -> None:
    parts = [with_groups(beats, 0, 3, -1, 3), with_groups(beats, -1, -1), with_groups(beats, 0, 0, 1, -1)]
    group = concatenate([*parts, replace(beats, group=None)]).group
    assert group is not None
    named = group[:10].tolist()
    assert named[:4] == [0, 3, -1, 3] and named[4:6] == [-1, -1] and named[9] == -1
    assert named[6] == named[7] and len({0, 3, named[6], named[8]}) == 4
    assert (group[10:] == -1).all() and len(group) == 10 + len(beats)


@pytest.mark.parametrize("groups", [(None, None), (-1, None), (-1, -1)])
def test_sources_that_name_no_patient_have_none_together(beats: Beats, groups: tuple[int | None, int | None]) -> None:
    parts = [replace(beats, group=None if group is None else torch.full((300,), group)) for group in groups]
    assert concatenate(parts).group is None


def test_labels_remain_where_all_have_the_same_classes(beats: Beats) -> None:
    joined = concatenate([beats, beats.select(torch.arange(5))])
    assert joined.classes == beats.classes
    assert torch.equal(joined.labels, torch.cat([beats.labels, beats.labels[:5]]))
    for other in (synthetic_ptb(50, 0), replace(beats, target=None), replace(beats, classes=beats.classes[::-1])):
        for parts in ([beats, other], [other, beats]):
            joined = concatenate(parts)
            assert (joined.target, joined.classes) == (None, ())


def test_intervals_remain_where_all_have_them(beats: Beats) -> None:
    joined = concatenate([beats, synthetic_ptb(50, 0)])
    assert joined.intervals is not None and joined.intervals.shape == (350, 6)
    assert concatenate([beats, replace(beats, intervals=None)]).intervals is None


@pytest.mark.parametrize(
    "changed",
    [{"signal": torch.zeros(300, 2, 187)}, {"signal": torch.zeros(300, 1, 100)}, {"rate_hz": 360.0}],
    ids=["leads", "samples", "rate"],
)
def test_sources_of_another_shape_are_refused(beats: Beats, changed: dict[str, torch.Tensor | float]) -> None:
    other = replace(beats, source="other", **changed)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"other .*: they cannot be joined") as error:
        concatenate([beats, beats, other])
    assert "\n" not in str(error.value) and beats.source in str(error.value)
