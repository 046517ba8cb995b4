import pytest
import torch
from torch import Tensor

from data.augment import AUGMENTATIONS, augment, valid_mask

LENGTHS = torch.tensor([40, 100, 187, 150])


def make_beats() -> Tensor:
    torch.manual_seed(0)
    return (0.2 + 0.6 * torch.rand(4, 2, 187)) * valid_mask(LENGTHS, 187)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_each_keeps_shape_and_padding_and_changes_something(name: str) -> None:
    beats = make_beats()
    given = beats.clone()
    torch.manual_seed(1)
    made = augment(beats, LENGTHS, (name,))
    assert made.shape == beats.shape and made.dtype == beats.dtype
    assert made.isfinite().all()
    assert not made[~valid_mask(LENGTHS, 187).expand_as(made)].any()
    assert torch.equal(beats, given)
    changed = (made != beats).flatten(1).any(1)
    # A shift may be by 0 samples, a blanked span may be shorter than one.
    assert changed.any() if name in ("shift", "span_mask") else changed.all()


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_the_function_itself_leaves_its_input_alone(name: str) -> None:
    beats, lengths = make_beats(), LENGTHS.clone()
    AUGMENTATIONS[name](beats, lengths)
    assert torch.equal(beats, make_beats())
    assert torch.equal(lengths, LENGTHS)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_seeded(name: str) -> None:
    beats, made = make_beats(), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        made.append(augment(beats, LENGTHS, (name,)))
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_beats_are_drawn_for_one_by_one(name: str) -> None:
    beat = make_beats()[2:3].expand(16, -1, -1).contiguous()
    torch.manual_seed(1)
    made = augment(beat, torch.full((16,), 187), (name,))
    assert len(made.flatten(1).unique(dim=0)) > 4


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_beat_without_samples_stays_zero(name: str) -> None:
    """A flat beat is all zeros (`scale_and_pad`), of valid length 0 (`measure_length`), and passes the schema check."""
    assert not augment(torch.zeros(1, 1, 187), torch.tensor([0]), (name,)).any()


def test_amplitude_scales_a_whole_beat_by_at_most_a_third() -> None:
    beats = make_beats()
    ratio = AUGMENTATIONS["amplitude"](beats, LENGTHS)[:, :, :40] / beats[:, :, :40]
    torch.testing.assert_close(ratio, ratio[:, :1, :1].expand_as(ratio))
    assert ((ratio >= 0.7 - 1e-6) & (ratio <= 1.3 + 1e-6)).all()


def test_a_shift_moves_by_at_most_three_samples() -> None:
    beat = torch.arange(1.0, 188).expand(64, 1, -1) / 187
    torch.manual_seed(0)
    moved = AUGMENTATIONS["shift"](beat, torch.full((64,), 187))
    offset = ((beat - moved)[:, 0, 10:170] * 187).round()
    assert (offset == offset[:, :1]).all()
    assert offset[:, 0].unique().tolist() == [-3, -2, -1, 0, 1, 2, 3]


def test_a_blanked_span_is_whole_and_at_most_a_quarter() -> None:
    beats = torch.ones(64, 1, 187)
    torch.manual_seed(0)
    blank = AUGMENTATIONS["span_mask"](beats, torch.full((64,), 187))[:, 0] == 0
    assert blank.sum(1).max() <= 187 / 4 + 1
    assert (blank.int().diff(dim=1).abs().sum(1) <= 2).all()


def test_several_are_applied_in_turn_and_unknown_ones_refused() -> None:
    beats = make_beats()
    torch.manual_seed(3)
    made = augment(beats, LENGTHS, ("amplitude", "noise"))
    torch.manual_seed(3)
    scaled = AUGMENTATIONS["amplitude"](beats, LENGTHS)
    expected = AUGMENTATIONS["noise"](scaled, LENGTHS) * valid_mask(LENGTHS, 187)
    assert torch.equal(made, expected)
    with pytest.raises(ValueError, match=f"unknown augmentation 'flip'; choose from {', '.join(AUGMENTATIONS)}"):
        augment(beats, LENGTHS, ("noise", "flip"))


def test_valid_mask() -> None:
    mask = valid_mask(torch.tensor([0, 2, 4]), 4)
    assert mask.shape == (3, 1, 4)
    assert mask[:, 0].int().tolist() == [[0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]]
