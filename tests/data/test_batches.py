from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from data.batches import Patients, Resident, balanced, shuffled
from data.synthetic import synthetic_ptb

SIZES = st.integers(1, 300)
SEEDS = st.integers(0, 2**63 - 1)


@given(SIZES, SIZES, SEEDS)
def test_an_epoch_holds_every_index_once_in_nearly_equal_batches(num_items: int, batch_size: int, seed: int) -> None:
    batches = shuffled(num_items, batch_size, seed)
    assert torch.cat(batches).sort().values.tolist() == list(range(num_items))
    sizes = [len(batch) for batch in batches]
    assert max(sizes) - min(sizes) <= 1
    assert len(batches) == max(1, round(num_items / batch_size))


@given(SIZES, SIZES, SEEDS)
def test_the_seed_decides_the_order(num_items: int, batch_size: int, seed: int) -> None:
    torch.manual_seed(seed % 7)
    first = shuffled(num_items, batch_size, seed)
    torch.manual_seed(seed % 5)
    again = shuffled(num_items, batch_size, seed)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def test_another_seed_gives_another_order() -> None:
    orders = {tuple(torch.cat(shuffled(50, 8, seed)).tolist()) for seed in range(5)}
    assert len(orders) == 5
    assert tuple(range(50)) not in orders


TARGETS = st.lists(st.sampled_from([0, 1, 2, 4]), min_size=1, max_size=200).map(torch.tensor)


@given(TARGETS, st.integers(1, 60), SEEDS)
def test_a_balanced_batch_holds_the_present_classes_in_equal_shares(target: Tensor, batch_size: int, seed: int) -> None:
    batches, present = balanced(target, batch_size, seed), target.unique()
    for batch in batches:
        shares = torch.bincount(target[batch], minlength=5)[present]
        assert shares.max() - shares.min() <= 1
    assert [len(batch) for batch in batches] == [len(batch) for batch in shuffled(len(target), batch_size, seed)]


@given(TARGETS, st.integers(1, 60), SEEDS)
def test_a_class_is_drawn_without_repetition_until_it_is_used_up(target: Tensor, batch_size: int, seed: int) -> None:
    order = torch.cat(balanced(target, batch_size, seed))
    for label in target.unique():
        size = int((target == label).sum())
        for round_of in order[target[order] == label].split(size):
            assert len(round_of.unique()) == len(round_of)


@given(TARGETS, SEEDS)
def test_the_seed_decides_a_balanced_epoch(target: Tensor, seed: int) -> None:
    torch.manual_seed(seed % 7)
    first = balanced(target, 8, seed)
    torch.manual_seed(seed % 5)
    again = balanced(target, 8, seed)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def test_another_seed_gives_another_balanced_epoch_and_another_order_each_round() -> None:
    target = torch.tensor([0] * 50 + [1] * 10)
    epochs = [torch.cat(balanced(target, 8, seed)) for seed in range(5)]
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 5
    assert {len(epoch[target[epoch] == 0].unique()) for epoch in epochs} == {30}
    rounds = [tuple(round_of.tolist()) for epoch in epochs for round_of in epoch[target[epoch] == 1].split(10)]
    assert len(set(rounds)) == len(rounds) == 15


GROUPS = st.lists(st.integers(-1, 6), min_size=1, max_size=60).map(torch.tensor)


@given(GROUPS, SEEDS)
def test_a_partner_is_another_beat_of_the_same_patient_or_the_beat_itself(group: Tensor, seed: int) -> None:
    torch.manual_seed(seed)
    index = torch.randperm(len(group))
    for beat, partner in zip(index.tolist(), Patients(group).others(index).tolist(), strict=True):
        alone = group[beat] < 0 or (group == group[beat]).sum() == 1
        assert (partner == beat) == alone
        assert group[partner] == group[beat]


def test_every_other_beat_of_a_patient_is_drawn_equally_often() -> None:
    torch.manual_seed(0)
    group = torch.tensor([1, 0, 1, 1, -1, 0, 1])
    drawn = torch.bincount(Patients(group).others(torch.full((6000,), 2)), minlength=7)
    assert drawn.nonzero().flatten().tolist() == [0, 3, 6]
    assert (drawn[drawn > 0] - 2000).abs().max() < 200


def test_torchs_seed_decides_the_partners() -> None:
    feed, index = Resident(synthetic_ptb(300, 0), "cpu"), torch.arange(40)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(feed.partners(index))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    group = feed.about.group
    assert group is not None and torch.equal(group[drawn[0]], group[index]) and not (drawn[0] == index).any()


def test_beats_without_patients_have_no_partners() -> None:
    feed = Resident(replace(synthetic_ptb(20, 0), group=None, source="nameless"), "cpu")
    with pytest.raises(ValueError, match="nameless does not name its patients"):
        feed.partners(torch.arange(2))


def test_a_batch_brings_its_labels_and_patients() -> None:
    beats, index = synthetic_ptb(30, 0), torch.tensor([7, 2, 29])
    taken = Resident(beats, "cpu").take(index)
    for name in ("signal", "valid_length", "target", "group"):
        assert torch.equal(getattr(taken, name), getattr(beats, name)[index])
    nameless = Resident(replace(beats, target=None, group=None), "cpu").take(index)
    assert (nameless.target, nameless.group) == (None, None)
