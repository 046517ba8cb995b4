import torch
from hypothesis import given
from hypothesis import strategies as st

from data.batches import shuffled

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
