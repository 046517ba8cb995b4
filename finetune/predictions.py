"""What a classifier says of beats: a row each in a file, and their sums."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow.csv import CSVWriter
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from data.beats import Beats
from experiments import tables
from experiments.files import atomic
from finetune.model import Model

SUFFIXES = (".parquet", ".parq", ".csv")


class Answers(NamedTuple):
    """Of some beats."""

    probability: NDArray[np.float64]
    """(num_beats, num_classes), calibrated by the model's temperature."""
    label: NDArray[np.int64]
    """(num_beats,): the most probable class."""
    raised: NDArray[np.bool_]
    """(num_beats, num_classes): alarms; all False where the model has no thresholds."""

    @classmethod
    def of(cls, model: Model, beats: Beats) -> Self:
        """
        Raises:
            ValueError: beats that the model was not made for.
        """
        model.check(beats)
        probability = model.probabilities(beats)
        return cls(probability, probability.argmax(axis=1), probability >= limits(model))

    def columns(self, classes: tuple[str, ...], with_alarms: bool) -> dict[str, pa.Array]:
        """Named: class, p_CLASS for each, and alarm_CLASS."""
        named = {"class": pa.array(np.array(classes)[self.label])}
        named |= {f"p_{name}": pa.array(self.probability[:, place], pa.float32()) for place, name in enumerate(classes)}
        if with_alarms:
            named |= {f"alarm_{name}": pa.array(self.raised[:, place]) for place, name in enumerate(classes)}
        return named


def limits(model: Model) -> NDArray[np.float64]:
    """(num_classes,): the probability from which a class's alarm is raised; infinite where none ever is.

    Raises:
        ValueError: the model's file has thresholds of another number of classes.
    """
    values = (None,) * len(model.classes) if model.thresholds is None else model.thresholds.values
    if len(values) != len(model.classes):
        raise ValueError(f"{model.origin} has {len(values)} thresholds for {len(model.classes)} classes")
    return np.array([np.inf if value is None else value for value in values])


@dataclass
class Tally:
    """Sums over beats, by class."""

    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        self.beats, self.alarms, self.confidence = np.zeros((3, len(self.classes)))
        self.quiet = 0
        """Beats that raise no alarm."""

    def add(self, answers: Answers) -> None:
        size = len(self.classes)
        self.beats += np.bincount(answers.label, minlength=size)
        self.alarms += answers.raised.sum(axis=0)
        self.confidence += np.bincount(answers.label, answers.probability.max(axis=1), minlength=size)
        self.quiet += int((~answers.raised.any(axis=1)).sum())

    @property
    def num_beats(self) -> int:
        return int(self.beats.sum())

    def to_json(self, model: Model) -> dict[str, dict[str, Any]]:
        """By class; without thresholds, no alarms."""
        content = {}
        for place, name in enumerate(self.classes):
            beats = int(self.beats[place])
            content[name] = {
                "beats": beats,
                "share": beats / max(1, self.num_beats),
                "mean_confidence": self.confidence[place] / beats if beats else None,
            }
            if model.thresholds is not None:
                content[name] |= {
                    "alarms": int(self.alarms[place]),
                    "threshold": model.thresholds.values[place],
                }
        return content


def class_table(title: str, content: dict[str, dict[str, Any]], floor: float | None) -> Table:
    """`Tally.to_json` for people.

    Args:
        floor: that the thresholds were set for; None where there are none.
    """
    table = Table(title=escape(title), title_style="bold")
    for header in ("class", "beats", "share", "mean confidence", *(("alarms", "threshold") if floor else ())):
        table.add_column(header, justify="left" if header == "class" else "right")
    for name, row in content.items():
        confidence = "–" if row["mean_confidence"] is None else f"{row['mean_confidence']:.3f}"
        cells = [escape(name), f"{row['beats']:,}", f"{row['share']:.1%}", confidence]
        if floor:
            threshold = "–" if row["threshold"] is None else f"{row['threshold']:.3g}"
            cells += [f"{row['alarms']:,}", threshold]
        table.add_row(*cells)
    if floor:
        table.caption = f"alarms: each class against the rest; {floor:.0%} found in validation"
    return table


class PredictionFile:
    """A Parquet or CSV file, written piece by piece; under its name it is whole or absent.

    What an interruption leaves is a whole file of fewer beats, under the name of `partial`; an error leaves nothing.
    """

    def __init__(self, path: Path) -> None:
        """
        Raises:
            ValueError: a name that ends in none of `SUFFIXES`.
        """
        if path.suffix not in SUFFIXES:
            raise ValueError(f"--out {path}: the name must end in one of {', '.join(SUFFIXES)}")
        self.path = path
        self.partial = path.with_name(f"{path.stem}.partial{path.suffix}")
        self.num_beats = 0
        self._writer: pq.ParquetWriter | CSVWriter | None = None

    def __enter__(self) -> Self:
        self._atomic = atomic(self.partial)
        self._stream = self._atomic.__enter__()
        return self

    def append(self, table: pa.Table) -> None:
        """Of the same columns each time."""
        if self._writer is None:
            csv = self.path.suffix == ".csv"
            self._writer = (CSVWriter if csv else pq.ParquetWriter)(self._stream, table.schema)
        self._writer.write_table(table)
        self.num_beats += len(table)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        kept = kind is None or (kind is KeyboardInterrupt and self.num_beats > 0)
        try:
            if kept:
                assert self._writer is not None, "there is not one beat to write"
                self._writer.close()
        except BaseException as failure:
            self._atomic.__exit__(type(failure), failure, failure.__traceback__)
            raise
        self._atomic.__exit__(*((None, None, None) if kept else (kind, error, trace)))
        if kind is None:
            self.partial.replace(self.path)


class CountLine:
    """What is done, how fast, and the time left: a live line in a terminal, a plain one now and then in a file."""

    def __init__(self, title: str, unit: str) -> None:
        self.title, self.unit = title, unit
        self.console: Console = tables.console()
        text = TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[speed]}")
        self.bar = Progress(*text, TimeRemainingColumn(), console=self.console, transient=True)
        self.task = self.bar.add_task(title, total=None, speed="")
        self.start = self.printed = time.monotonic()

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self.bar.stop()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        speed = done / max(now - self.start, 1e-9)
        said = f"{speed:,.0f} {self.unit}/s"
        self.bar.update(self.task, completed=done, total=total, speed=said)
        if not self.console.is_terminal and now - self.printed > tables.PLAIN_LINE_EVERY_S and 0 < done < total:
            self.printed = now
            left = tables.duration((total - done) / speed)
            tables.say(f"{self.title} · {done:,} of {total:,} {self.unit} · {said} · {left} left")
