"""`predict`: from a file of beats, or a record, to each beat's class, probabilities and alarms."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

import data
from data.beats import Beats
from data.pieces import AT_ONCE, BeatFile
from data.record import Record, is_record, write_annotations
from experiments import cli, tables
from experiments.loop import deferred_interrupt
from finetune import reference, strip
from finetune.predictions import Answers, CountLine, PredictionFile, Tally, class_table

if TYPE_CHECKING:
    from finetune.model import Model
    from finetune.model_commands import Predict


OF_RECORDS = (".atr", ".dat", ".hea")


class Piece(NamedTuple):
    """Beats to classify, and the columns that go before the answers in the file of predictions."""

    beats: Beats
    columns: pa.Table


@dataclass(kw_only=True)
class Outcome:
    """What a run of the command has found."""

    tally: Tally
    labels: list[NDArray[np.integer]] = field(default_factory=list)
    """Of a record's beats; a file's are not kept."""
    seconds: float = 0.0

    @property
    def speed(self) -> float:
        return self.tally.num_beats / max(self.seconds, 1e-9)


def check(flags: Predict) -> None:
    """
    Raises:
        ValueError: places that cannot be written to, or must not be; said before the model is loaded.
    """
    if flags.strip_start is not None and flags.strip is None:
        raise ValueError("--strip-start needs --strip FILE")
    if flags.out is not None:
        PredictionFile(flags.out)
        cli.writable(flags.out)
        if flags.out.resolve() == Path(flags.input).resolve():
            raise ValueError(f"--out {flags.out} is the input itself")
    if flags.strip is not None:
        cli.writable(flags.strip.with_suffix(".png"), "--strip")
    if flags.annotations is not None:
        path = flags.annotation_file
        cli.writable(path, "--annotations")
        if not re.fullmatch(r"[-\w]+\.[A-Za-z]+", path.name):
            raise ValueError(f"--annotations {path}: the name must be RECORD.EXTENSION, the extension of letters")
        if path.suffix in OF_RECORDS:
            raise ValueError(f"--annotations {path}: files of the record itself end so; choose another, such as .pred")


def predict(flags: Predict, model: Model) -> dict[str, Any]:
    """Classify, write, show; what the table prints, for `--json`.

    Raises:
        ValueError: an input that is missing, damaged or not for this model; one line.
        KeyboardInterrupt: between two pieces; what was written so far is kept, and said.
    """
    place = Path(flags.input)
    if not data.is_own(flags.input) and is_record(place):
        return _predict_record(flags, model, Record.open(place, wanted=flags.lead))
    for_records = {"lead": flags.lead, "annotations": flags.annotations, "strip": flags.strip}
    for_records |= {"strip-start": flags.strip_start, "reference": flags.reference}
    if given := [f"--{name}" for name, value in for_records.items() if value is not None]:
        raise ValueError(f"{', '.join(given)}: for WFDB records; {flags.input} is not one ({place}.hea does not exist)")
    return _predict_file(flags, model, BeatFile(*kind_and_place(flags.input)))


def kind_and_place(what: str) -> tuple[str, Path]:
    """Of csv:FILE and parquet:FILE, and of a FILE whose name says which it is.

    Raises:
        ValueError: a file of another kind, or none.
    """
    named = data.own_name(what)
    if data.is_own(named):
        kind, _, place = named.partition(":")
        return kind, Path(place)
    path = Path(what)
    state = "is neither" if path.exists() else "does not exist"
    raise ValueError(
        f"{what} {state}: predict takes a Parquet or CSV file of beats (or parquet:FILE, csv:FILE, csv:FILE@RATE_HZ), "
        "or a WFDB record by its path without suffix"
    )


def _predict_file(flags: Predict, model: Model, file: BeatFile) -> dict[str, Any]:
    def pieces() -> Iterator[Piece]:
        for beats, row, origin in file:
            yield Piece(
                beats, pa.table({"row": pa.array(row)} | dict(zip(origin.column_names, origin.columns, strict=True)))
            )

    outcome = classify(flags, model, pieces(), file.num_rows, keep_labels=False)
    notes = [*file.remarks, *_notes(model)]
    written = [] if flags.out is None else [str(flags.out)]
    content = _content(flags, model, outcome) | {"notes": notes, "written": written}
    show(f"{flags.model} on {file.path.name}", model, outcome, content)
    return content


def _predict_record(flags: Predict, model: Model, record: Record) -> dict[str, Any]:
    if flags.strip_start is not None:
        strip.rows_from(record, flags.strip_start)
    annotated = None if flags.reference is None else reference.Annotated.read(record.stem, flags.reference)
    begun = time.monotonic()
    with CountLine(f"R peaks of {record.stem.name}", "samples") as line:
        peak = record.find_peaks(line)
    found_s = time.monotonic() - begun
    if len(peak) < 2:
        raise ValueError(
            f"{record.stem}: {len(peak)} R peaks found in the {record.seconds:g} s of {record.lead}; "
            "a beat's length and RR ratios need two"
        )
    rhythm = record.measure(peak)
    sample = peak[rhythm.kept]

    def pieces() -> Iterator[Piece]:
        first = 0
        for beats in record.beats(rhythm, AT_ONCE):
            here = sample[first : first + len(beats)]
            time_s = np.round(here / record.rate_hz, 4)
            yield Piece(beats, pa.table({"sample": pa.array(here), "time_s": pa.array(time_s)}))
            first += len(beats)

    outcome = classify(flags, model, pieces(), len(sample), keep_labels=True)
    label = np.concatenate(outcome.labels)
    beats = strip.Labelled(sample, label, model.classes)
    write_annotations(flags.annotation_file, sample, np.array(model.classes)[label].tolist(), record.rate_hz)
    pictures = [] if flags.strip is None else strip.write_strip(flags.strip, record, beats, flags.strip_start)
    notes = [*record.notes(rhythm), *_notes(model)]
    written = [*([] if flags.out is None else [flags.out]), flags.annotation_file, *pictures]
    content = _content(flags, model, outcome) | {
        "lead": record.lead,
        "rate_hz": record.rate_hz,
        "record_seconds": record.seconds,
        "peaks": len(peak),
        "detection_seconds": found_s,
        "notes": notes,
        "written": [str(path) for path in written],
    }
    title = f"{flags.model} on {record.stem.name}, {record.lead}, {tables.duration(record.seconds)}"
    show(title, model, outcome, content)
    if annotated is not None:
        compared = reference.compare(annotated, peak, rhythm.kept, label, model.classes, record.rate_hz)
        reference.show(compared)
        content["reference"] = compared.to_json()
    return content


def classify(flags: Predict, model: Model, pieces: Iterable[Piece], total: int, *, keep_labels: bool) -> Outcome:
    """Piece by piece; the answers go to `--out`, if that is given.

    Raises:
        KeyboardInterrupt: Ctrl-C, after the piece at hand.
    """
    outcome, begun, done = Outcome(tally=Tally(model.classes)), time.monotonic(), 0
    file = None if flags.out is None else PredictionFile(flags.out)
    try:
        with deferred_interrupt() as interrupted, file or nullcontext(), CountLine("classifying", "beats") as line:
            for beats, columns in pieces:
                answers = Answers.of(model, beats)
                outcome.tally.add(answers)
                done += len(beats)
                if keep_labels:
                    outcome.labels.append(answers.label.astype(np.int16))
                if file is not None:
                    for name, column in answers.columns(model.classes, model.thresholds is not None).items():
                        columns = columns.append_column(name, column)
                    file.append(columns)
                line(done, total)
                if interrupted():
                    raise KeyboardInterrupt
    except KeyboardInterrupt:
        kept = f"those are in {file.partial}" if file is not None and file.num_beats else "nothing was kept"
        tables.say(f"interrupted after {done:,} of {total:,} beats: {kept}")
        raise
    outcome.seconds = time.monotonic() - begun
    return outcome


def _notes(model: Model) -> list[str]:
    return [] if model.thresholds is not None else [f"{model.origin} has no thresholds: no alarms"]


def _content(flags: Predict, model: Model, outcome: Outcome) -> dict[str, Any]:
    tally, thresholds = outcome.tally, model.thresholds
    return {
        "model": flags.model,
        "input": flags.input,
        "beats": tally.num_beats,
        "classes": tally.to_json(model),
        "recall_floor": None if thresholds is None else thresholds.floor,
        "beats_without_alarm": None if thresholds is None else tally.quiet,
        "temperature": model.temperature,
        "seconds": outcome.seconds,
        "beats_per_s": outcome.speed,
    }


def show(title: str, model: Model, outcome: Outcome, content: dict[str, Any]) -> None:
    tables.console().print(class_table(title, content["classes"], content["recall_floor"]))
    for note in content["notes"]:
        tables.say(note)
    quiet = "" if model.thresholds is None else f", {outcome.tally.quiet:,} without an alarm"
    found = f"; R peaks found in {tables.duration(content['detection_seconds'])}" if "peaks" in content else ""
    written = f"; written: {', '.join(content['written'])}" if content["written"] else ""
    tables.say(
        f"{outcome.tally.num_beats:,} beats{quiet}, classified in {tables.duration(outcome.seconds)} "
        f"({outcome.speed:,.0f} beats/s){found}{written}"
    )
