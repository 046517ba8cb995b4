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


TASKS = {
    "masked": Entry("pretrain.masked:Masked", "mae"),
    "contrastive": Entry("pretrain.contrastive:Contrastive", "simclr"),
    "supervised": Entry("pretrain.supervised:Supervised", "supervised"),
}


SOURCES = ("ptb", "kaggle-ptb", "ptbdb", "ptbxl", "synthetic-ptb")
"""Data sets to pretrain on, beside csv:PATH and parquet:PATH."""


def probed_on(source: str) -> str:
    """The labelled target whose validation part probes an encoder of this source."""
    return "synthetic-arrhythmia" if source.startswith("synthetic-") else "arrhythmia"


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
