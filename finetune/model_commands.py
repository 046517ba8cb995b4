"""The flags of `python -m finetune` evaluate, predict, export and explain: what one classifier's file is asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import tyro

from experiments import cli

if TYPE_CHECKING:
    from finetune.model import Model


@dataclass(frozen=True, kw_only=True)
class ModelFlags(cli.DataFlags, cli.Report):
    """What every command asks that takes a classifier."""

    model: tyro.conf.Positional[str]
    """Classifier FILE, as `train` and `tune` write it."""
    threads: int | None = None
    """CPU threads (default: all cores)."""
    device: str = "auto"
    """auto (CUDA where there is one), cpu, cuda or cuda:N."""

    def load(self) -> Model:
        from experiments.machine import resolve_device, resolve_threads
        from finetune.model import Model

        cli.at_least_one(threads=1 if self.threads is None else self.threads)
        resolve_threads(self.threads)
        return Model.load(self.model, resolve_device(self.device))


COMMANDS: dict[str, type[cli.Command]] = {}
