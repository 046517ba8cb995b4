import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from data.batches import balanced, shuffled

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
