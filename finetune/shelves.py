"""Activations in Ray's object store: what one trial has computed, every trial of the same encoder uses."""

from __future__ import annotations

import contextlib
import warnings
from collections import OrderedDict
from typing import Any, Self

import numpy as np
import ray
import torch
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from torch import Tensor

Packed = tuple[np.ndarray, str, list[int]]
"""Bits as they lie in memory, type, and the order of the axes."""

MOST_BYTES = 2 * 2**30
"""Of all activations on one shelf; the longest unused ones go first."""
PATIENCE_S = 30.0
"""For an object to come from another machine; then it is computed here."""


@ray.remote(num_cpus=0)
class Keeper:
    """Who knows what lies where. It puts the objects itself, so that they outlive the trial that made them."""

    def __init__(self) -> None:
        self.kept: OrderedDict[str, tuple[list[ray.ObjectRef], int]] = OrderedDict()

    def find(self, key: str) -> list[ray.ObjectRef]:
        """The reference, in a list since Ray would otherwise send what it refers to; empty where there is none."""
        if key not in self.kept:
            return []
        self.kept.move_to_end(key)
        return self.kept[key][0]

    def keep(self, key: str, activations: Packed) -> None:
        self.kept[key] = [ray.put(activations)], activations[0].nbytes
        while sum(size for _, size in self.kept.values()) > MOST_BYTES and len(self.kept) > 1:
            self.kept.popitem(last=False)


class SharedShelf:
    """`finetune.activations.Shelf` on a Keeper. What cannot be had, as after the loss of a node, is computed anew."""

    def __init__(self, keeper: Any) -> None:
        self.keeper = keeper

    @classmethod
    def start(cls) -> Self:
        """An empty one, as long as it or a copy of it is in use."""
        beside_the_driver = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        return cls(Keeper.options(scheduling_strategy=beside_the_driver).remote())

    def take(self, key: str) -> Tensor | None:
        with contextlib.suppress(RayError):
            for reference in ray.get(self.keeper.find.remote(key)):
                return _unpacked(*ray.get(reference, timeout=PATIENCE_S))
        return None

    def put(self, key: str, activations: Tensor) -> None:
        with contextlib.suppress(RayError):
            ray.get(self.keeper.keep.remote(key, _packed(activations)))


def _packed(tensor: Tensor) -> Packed:
    """Bits, since NumPy has no bfloat16, in the order in which they lie in memory; the type; the way back."""
    order = sorted(range(tensor.ndim), key=tensor.stride, reverse=True)
    in_memory = tensor.cpu().permute(order).contiguous()
    bits = in_memory.view(torch.int16 if tensor.element_size() == 2 else torch.int32).numpy()
    return bits, str(tensor.dtype).removeprefix("torch."), [order.index(axis) for axis in range(tensor.ndim)]


def _unpacked(bits: np.ndarray, dtype: str, back: list[int]) -> Tensor:
    """Without a copy: it is only ever read."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(bits).view(getattr(torch, dtype)).permute(back)
