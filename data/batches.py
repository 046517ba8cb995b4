"""Whole splits on the device, and epochs of shuffled index batches: no per-sample Python."""

import torch
from torch import Tensor


def shuffled(num_items: int, batch_size: int, seed: int) -> tuple[Tensor, ...]:
    """One epoch: every index once, in a seeded order, in batches of nearly equal size (never a tiny last one)."""
    order = torch.randperm(num_items, generator=torch.Generator().manual_seed(seed))
    return order.tensor_split(max(1, round(num_items / batch_size)))
