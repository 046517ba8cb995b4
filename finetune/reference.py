"""A record's predicted beats against its reference annotations, beat by beat (ANSI/AAMI EC57).

A found peak and an annotated beat are one where they lie within 150 ms. The whole record counts, its first five minutes
and episodes of ventricular flutter included, which the standard would leave out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from data.known import CLASSES
from data.physionet import CLASS_OF
from data.record import read_annotations
from data.segment import quietly
from experiments import tables
from experiments.metrics import confusion_matrix, recall_per_class

WINDOW_S = 0.15


@dataclass(frozen=True, kw_only=True)
class Comparison:
    file: str
    num_reference: int
    """Annotated beats."""
    num_found: int
    num_matched: int
    offset_ms: float | None
    """Median distance, whichever way, of a matched peak from its annotation."""
    classes: tuple[str, ...]
    confusion: NDArray[np.int64] | None
    """Of the matched beats: rows by the annotation, columns by the model; None where the model's classes are not
    AAMI's."""
    left_out: Mapping[str, int]
    """Matched beats that the matrix does not count, by reason."""

    @property
    def sensitivity(self) -> float:
        return self.num_matched / self.num_reference

    @property
    def positive_predictivity(self) -> float:
        return self.num_matched / self.num_found

    def to_json(self) -> dict[str, Any]:
        content: dict[str, Any] = {
            "file": self.file,
            "reference_beats": self.num_reference,
            "found_beats": self.num_found,
            "matched_beats": self.num_matched,
            "sensitivity": self.sensitivity,
            "positive_predictivity": self.positive_predictivity,
            "median_offset_ms": self.offset_ms,
        }
        if self.confusion is not None:
            recalls = recall_per_class(self.confusion)
            content["classes"] = list(self.classes)
            content["confusion"] = self.confusion.tolist()
            content["recall"] = {
                name: None if np.isnan(recall) else float(recall)
                for name, recall in zip(self.classes, recalls, strict=True)
            }
            content["left_out"] = dict(self.left_out)
        return content


class Annotated(NamedTuple):
    """The beats of a reference annotation file."""

    file: str
    sample: NDArray[np.int64]
    names: NDArray[np.str_]
    """AAMI class of each."""

    @classmethod
    def read(cls, stem: Path, extension: str) -> Self:
        """
        Raises:
            ValueError: no file STEM.EXTENSION, or none with beats; one line.
        """
        sample, symbols = read_annotations(stem, extension)
        of_beat = np.array([symbol in CLASS_OF for symbol in symbols], bool)
        if not of_beat.any():
            raise ValueError(f"{stem}.{extension} has no beats to compare with")
        names = np.array([CLASSES["arrhythmia"][CLASS_OF[symbol]] for symbol in symbols if symbol in CLASS_OF])
        return cls(f"{stem}.{extension}", sample[of_beat], names)


def compare(
    annotated: Annotated,
    peak: NDArray[np.int64],
    classified: NDArray[np.bool_],
    label: NDArray[np.integer],
    classes: tuple[str, ...],
    rate_hz: float,
) -> Comparison:
    """
    Args:
        peak: (num_peaks,) samples of all that was found, ascending.
        classified: (num_peaks,): which of them were beats long enough to be classified.
        label: (num_classified,) index into `classes`.
        rate_hz: of the record.
    """
    with quietly():
        from wfdb.processing import compare_annotations

        window = round(WINDOW_S * rate_hz) + 1  # it matches what is nearer than that
        found = compare_annotations(annotated.sample, peak, window)
    matched, place = np.asarray(found.matched_ref_inds, np.int64), np.asarray(found.matched_test_inds, np.int64)
    offset_s = np.abs(annotated.sample[matched] - peak[place]) / rate_hz
    answered = np.full(len(peak), -1)
    answered[classified] = label
    confusion, left_out = _confusion(annotated.names[matched], answered[place], classes)
    return Comparison(
        file=annotated.file,
        num_reference=len(annotated.sample),
        num_found=len(peak),
        num_matched=len(matched),
        offset_ms=1000 * float(np.median(offset_s)) if len(matched) else None,
        classes=classes,
        confusion=confusion,
        left_out=left_out,
    )


def _confusion(
    names: NDArray[np.str_], answered: NDArray[np.int64], classes: tuple[str, ...]
) -> tuple[NDArray[np.int64] | None, dict[str, int]]:
    """Of matched beats, and what it leaves out; `answered` is −1 for beats that were not classified."""
    if not set(classes) <= set(CLASSES["arrhythmia"]):
        return None, {}
    known, left = np.isin(names, classes) & (answered >= 0), Counter(names[~np.isin(names, classes)].tolist())
    left_out = {f"annotated {name}, which is none of the model's classes": count for name, count in left.items()}
    if cut := int(((answered < 0) & np.isin(names, classes)).sum()):
        left_out["too near the record's end to be classified"] = cut
    target = [classes.index(name) for name in names[known]]
    return confusion_matrix(np.array(target, np.int64), answered[known], len(classes)), left_out


def show(comparison: Comparison) -> None:
    tables.say(
        f"against {comparison.file}: {comparison.num_matched:,} of {comparison.num_reference:,} annotated beats found "
        f"(sensitivity {comparison.sensitivity:.4f}), {comparison.num_matched:,} of {comparison.num_found:,} peaks are "
        f"beats (positive predictivity {comparison.positive_predictivity:.4f})"
        + ("" if comparison.offset_ms is None else f", median offset {comparison.offset_ms:.1f} ms")
    )
    if comparison.confusion is None:
        names = ", ".join(comparison.classes)
        tables.say(f"{names} are not the classes of its annotations: beats are compared by their place alone")
        return
    table = tables.confusion_table(comparison.confusion.tolist(), comparison.classes, "Matched beats")
    table.caption = "rows: annotated class, columns: predicted, % of the row"
    tables.console().print(table)
    for reason, count in comparison.left_out.items():
        tables.say(f"not in the table: {count:,} beats {reason}")
