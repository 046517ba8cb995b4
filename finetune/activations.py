"""Activations at the freeze boundary: what frozen stages make of beats, computed once and trained above."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from data.beats import Beats
from experiments.machine import Machine, autocast
from models.checkpoint import weights_hash, weights_of
from models.heads import Classifier
from models.inference import apply

MOST_BYTES = 2**30
"""Of the activations of one boundary; those that are larger are computed anew in each epoch."""
BATCH = 256


class Rows:
    """A tensor (num_beats, …) from which batches are taken; a map (batch, channel, height, width) is channels last."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __getitem__(self, index: Tensor) -> Tensor:
        if self.tensor.ndim != 4:
            return self.tensor[index]
        return self.tensor.permute(0, 2, 3, 1)[index].permute(0, 3, 1, 2)


class Shelf(Protocol):
    """Where activations lie for whoever needs the same ones."""

    def take(self, key: str) -> Tensor | None: ...

    def put(self, key: str, activations: Tensor) -> None: ...


class NoShelf:
    """A run by itself: it holds what it needs as long as it needs it."""

    def take(self, key: str) -> Tensor | None:  # noqa: ARG002
        return None

    def put(self, key: str, activations: Tensor) -> None:
        pass


@dataclass(frozen=True)
class Boundary:
    """What lies below is frozen; its activations stand in for the beats."""

    num_steps: int
    train: Rows
    """In the precision of the training."""
    validation: Tensor
    """In float32, as all validation is."""


def frozen_steps(model: Classifier) -> int:
    """Number of the encoder's first steps in which nothing learns and no statistics move."""
    if model.batchnorm == "moving":
        return 0
    stages, done = list(model.encoder.stages), 0
    for number, last in enumerate(model.encoder.steps, start=1):
        if not model.still.issuperset(stages[: stages.index(last) + 1]):
            break
        done = number
    return done


def boundary(
    model: Classifier, num_steps: int, train: Tensor, parts: Sequence[Beats], machine: Machine, shelf: Shelf
) -> Boundary | None:
    """The activations behind `num_steps`, from the shelf where they lie there; None if they are too large.

    Args:
        train: the training beats' signal, on the device.
        parts: training and validation beats.
    """
    with torch.no_grad(), autocast(machine.device, machine.precision):
        one = model.below(num_steps, train[:1])
    num_beats = len(parts[0]) + len(parts[1])
    if num_beats * one.nbytes > MOST_BYTES:
        return None
    keys = [_key(model, num_steps, beats, machine) for beats in parts]
    trained, validated = (shelf.take(key) for key in keys)
    if trained is None:
        trained = _training(model, num_steps, train, machine)
        shelf.put(keys[0], trained)
    if validated is None:
        validated = apply(model, parts[1].signal, call=lambda x: model.below(num_steps, x))
        shelf.put(keys[1], validated)
    return Boundary(num_steps, Rows(trained.to(machine.device)), validated)


@torch.no_grad()
def _training(model: Classifier, num_steps: int, signal: Tensor, machine: Machine) -> Tensor:
    """As the training loop would compute them: the frozen stages are in eval mode, the precision is the loop's."""
    with autocast(machine.device, machine.precision):
        return torch.cat([model.below(num_steps, batch) for batch in signal.split(BATCH)])


def _key(model: Classifier, num_steps: int, beats: Beats, machine: Machine) -> str:
    """Everything that decides the activations: weights, beats, arithmetic, and how the head pools."""
    below = list(model.encoder.steps)[:num_steps]
    stages = list(model.encoder.stages)
    frozen = stages[: stages.index(below[-1]) + 1]
    weights = {
        f"{stage}.{name}": tensor
        for stage in frozen
        for name, tensor in weights_of(model.encoder.stages[stage]).items()
    }
    pooled = type(model.head).pool.__qualname__ if num_steps == len(model.encoder.steps) else ""
    about = (weights_hash(model.encoder.spec, weights), below[-1], pooled, beats.fingerprint, len(beats), machine)
    return hashlib.sha256(repr(about).encode()).hexdigest()
