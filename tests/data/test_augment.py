import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from data.augment import AUGMENTATIONS, augment, valid_mask

LENGTHS = torch.tensor([40, 100, 187, 150])


def make_beats() -> Tensor:
    torch.manual_seed(0)
    return (0.2 + 0.6 * torch.rand(4, 2, 187)) * valid_mask(LENGTHS, 187)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_each_keeps_shape_and_padding_and_changes_something(name: str, dtype: torch.dtype) -> None:
    beats = make_beats().to(dtype)
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


@pytest.mark.parametrize("name", AUGMENTATIONS.keys() - {"mix"})
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


RAMP = torch.arange(187.0).expand(64, 1, -1)
"""A beat that says, after time was warped, which sample it shows."""


def warp_ramp(num_samples: int) -> Tensor:
    torch.manual_seed(0)
    return AUGMENTATIONS["time_warp"](RAMP, torch.full((64,), num_samples))[:, 0, :num_samples]


@pytest.mark.parametrize("num_samples", [2, 3, 40, 187])
def test_warped_time_keeps_its_ends_and_never_runs_backwards(num_samples: int) -> None:
    warped = warp_ramp(num_samples)
    assert (warped[:, 0] == 0).all()
    torch.testing.assert_close(warped[:, -1], torch.full((64,), num_samples - 1.0))
    speed = warped.diff(dim=1)
    assert ((speed >= 0.8 - 1e-4) & (speed <= 1.2 + 1e-4)).all()


def test_warped_time_is_smooth_and_goes_both_ways() -> None:
    warped = warp_ramp(187)
    assert warped.diff(n=2, dim=1).abs().max() < 0.2 * torch.pi * 3 / 186
    offset = (warped - RAMP[:, 0])[:, 20:-20]
    assert offset.max() > 3 and offset.min() < -3 and offset.abs().max() <= 0.2 * 186 / torch.pi


def test_leads_are_warped_alike() -> None:
    torch.manual_seed(0)
    warped = AUGMENTATIONS["time_warp"](RAMP.expand(-1, 3, -1), torch.full((64,), 150))
    assert torch.equal(warped, warped[:, :1].expand_as(warped))


@given(st.lists(st.integers(0, 12), min_size=1, max_size=9).map(torch.tensor), st.integers(0, 99))
def test_a_mixed_beat_is_mostly_its_own_and_so_beyond_the_shorter_one(lengths: Tensor, seed: int) -> None:
    num_beats, own = len(lengths), torch.arange(len(lengths))
    beats = torch.eye(num_beats)[:, :, None] * valid_mask(lengths, 12)  # lead i shows how much there is of beat i
    torch.manual_seed(seed)
    mixed = AUGMENTATIONS["mix"](beats, lengths)
    assert (mixed[own, own] >= 0.8 * beats[own, own]).all()
    foreign = mixed.clone()
    foreign[own, own] = 0
    assert ((foreign > 0).any(2).sum(1) <= 1).all()
    for beat, lead, time in foreign.nonzero().tolist():
        assert time < min(int(lengths[beat]), int(lengths[lead]))
        assert foreign[beat, lead, time] + mixed[beat, beat, time] == pytest.approx(1)
    untouched = foreign.sum(1) == 0
    assert torch.equal(mixed[own, own][untouched], beats[own, own][untouched])


def test_every_beat_draws_its_own_partner_and_share() -> None:
    torch.manual_seed(0)
    mixed = AUGMENTATIONS["mix"](torch.eye(32)[:, :, None].expand(-1, -1, 5), torch.full((32,), 5))
    share = mixed[:, :, 0] - mixed[:, :, 0].diag().diag()
    assert (share > 0).sum(1).tolist() == [1] * 32
    assert len((share.argmax(1) - torch.arange(32)).remainder(32).unique()) > 10
    assert len(share.amax(1).unique()) > 20 and 0.15 < share.max() <= 0.2


def test_a_lone_beat_has_no_partner() -> None:
    beat = make_beats()[:1]
    torch.testing.assert_close(AUGMENTATIONS["mix"](beat, LENGTHS[:1]), beat)


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
