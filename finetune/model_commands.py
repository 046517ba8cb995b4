"""The flags of `python -m finetune` evaluate, predict, export and explain: what one classifier's file is asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
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


@dataclass(frozen=True, kw_only=True)
class Evaluate(ModelFlags):
    """What a classifier is worth on a test part: recall first, intervals, alarms, promises, calibration, patients.

    Temperature, alarms and promises are fitted on validation beats; the test part is looked at once. Intervals are
    from resamples of whole patients, where they are known.
    """

    data: str | None = None
    """Data set to test on (default: the one that it was trained on); another is tested with the temperature and the
    alarms of the classifier's file."""
    protocol: cli.Protocols | None = None
    """Split (default: the one that it was trained by)."""
    seed: int | None = None
    """Of the validation part (default: the one that the classifier was chosen on)."""
    miss_rate: tuple[str, ...] | None = None
    """Promise to miss no more than this share of each class (default: 0.05); V=0.02 says it of one class."""
    recall_floor: float | None = None
    """Alarms find this share of each class's validation beats (default: as the classifier was trained)."""
    recalibrate: bool = False
    """On another data set, fit temperature, alarms and promises on its own validation part."""
    out: Path | None = None
    """FOLDER of the pictures (default: experiments/runs/evaluate_MODEL_DATA_PROTOCOL)."""

    def folder(self, data: str, protocol: str) -> Path:
        from data import short_name

        return self.out or cli.RUNS / f"evaluate_{Path(self.model).stem}_{short_name(data)}_{protocol}"

    def run(self) -> None:
        if self.recall_floor is not None and not 0 < self.recall_floor <= 1:
            raise ValueError(f"--recall-floor {self.recall_floor}: above 0 and at most 1 is needed")
        if self.out is not None:
            cli.writable(self.out / "confusion.png")
        from finetune.evaluate import run

        run(self)


COMMANDS: dict[str, type[cli.Command]] = {
    "evaluate": Evaluate,
}
