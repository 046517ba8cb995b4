"""Activations in the object store, in a Ray of their own."""

import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

PROGRAM = """
import json
import ray, torch
from experiments import cluster
from finetune import shelves

def maps(dtype):
    torch.manual_seed(0)
    flat = torch.rand(5, 3, 1, 7).to(dtype)
    return {
        "tokens": flat.squeeze(2),
        "channels last": flat.contiguous(memory_format=torch.channels_last),
        "one beat": flat[:1],
    }

@ray.remote
def put(shelf):
    for dtype in (torch.float32, torch.bfloat16):
        for name, tensor in maps(dtype).items():
            shelf.put(f"{name} {dtype}", tensor)

@ray.remote
def take(shelf):
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        for name, tensor in maps(dtype).items():
            taken = shelf.take(f"{name} {dtype}")
            found[f"{name} {dtype}"] = taken.dtype == dtype and torch.equal(taken, tensor) and (
                taken.stride() == tensor.stride() or len(tensor) == 1
            )
    found["nothing"] = shelf.take("something else") is None
    return found

with cluster.started(2):
    shelf = shelves.SharedShelf.start()
    ray.get(put.remote(shelf))
    said = {"as put": ray.get(take.remote(shelf))}
    keeper = shelves.Keeper.remote()
    size = shelves.MOST_BYTES // 3 // 4
    small = shelves.SharedShelf(keeper)
    first = torch.zeros(2, size // 2)
    for number in range(3):
        small.put(str(number), first)
    small.take("0")
    small.put("3", first)
    said["longest unused goes first"] = [small.take(str(number)) is not None for number in range(4)]
    ray.kill(keeper)
    said["without a keeper"] = small.take("3") is None
    small.put("4", first[:, :4])
    print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def said(python: Callable[..., subprocess.CompletedProcess[str]]) -> dict[str, Any]:
    done = python("-c", PROGRAM)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_what_one_worker_puts_another_takes_bit_for_bit(said: dict[str, Any]) -> None:
    assert [name for name, same in said["as put"].items() if not same] == []
    assert len(said["as put"]) == 7


def test_a_full_shelf_loses_what_was_not_used_for_longest(said: dict[str, Any]) -> None:
    assert said["longest unused goes first"] == [True, False, True, True]


def test_a_lost_shelf_is_an_empty_one(said: dict[str, Any]) -> None:
    assert said["without a keeper"] is True
