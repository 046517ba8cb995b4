"""Pretraining tasks by name. A new task is one file and one line in `TASKS`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pretrain.task import PretrainTask


class Entry(NamedTuple):
    where: str
    suffix: str
    """How the checkpoint's file name says it: ptb_mae.pt."""
    labels: bool = False
    """Whether it learns from the source's labels."""
    encoders: tuple[str, ...] = ()
    """The architectures that it can train, where it cannot train all."""


TASKS = {
    "masked": Entry("pretrain.masked:Masked", "mae"),
    "spectrogram": Entry("pretrain.spectrogram:MaskedSpectrogram", "spectrogram"),
    "contrastive": Entry("pretrain.contrastive:Contrastive", "simclr"),
    "supcon": Entry("pretrain.supcon:SupervisedContrastive", "supcon", labels=True),
    "vicreg": Entry("pretrain.vicreg:Vicreg", "vicreg"),
    "byol": Entry("pretrain.byol:Byol", "byol"),
    "jepa": Entry("pretrain.jepa:Jepa", "jepa", encoders=("transformer1d",)),
    "supervised": Entry("pretrain.supervised:Supervised", "supervised", labels=True),
    "multitask": Entry("pretrain.multitask:Multitask", "multitask", labels=True),
}

DEFAULT_TASK = "contrastive"
"""The best of them on validation data, as the README shows."""


def entry(name: str) -> Entry:
    """
    Raises:
        ValueError: an unknown task; the message lists the choices.
    """
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}; choose from {', '.join(TASKS)}")
    return TASKS[name]


def task_class(name: str) -> type[PretrainTask]:
    module, _, attribute = entry(name).where.partition(":")
    return getattr(import_module(module), attribute)
