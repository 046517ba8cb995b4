"""Beats of the user's own from a file larger than memory: what `data.own.read_own` makes of it, a piece at a time.

Whether a first column counts the rows and whether beats are scaled already are questions to the whole file: it is
read twice.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from data.beats import NUM_SAMPLES, RATE_HZ, Beats, derive, measure_length
from data.csv import iterate_rows
from data.own import (
    LABEL,
    SILENT,
    Rows,
    check_no_rate,
    check_signal,
    column_of,
    counts_rows,
    csv_layout,
    is_scaled,
    origin_of,
    parquet_layout,
    path_and_rate,
    scale,
    scaling_remarks,
    to_layout,
    without_first,
)
from data.parquet import check_is_data, opened
from data.store import description, is_own, read_pieces

AT_ONCE = 8192
"""Rows of a Parquet file; of a CSV file they are those of 4 MB."""
BUFFER_BYTES = 1 << 16
"""Of each column: without it, a column of a row group is read whole, however large."""


class Piece(NamedTuple):
    """Some beats of a file, in order."""

    beats: Beats
    row: NDArray[np.int64]
    """(num_beats,): the row of the file, from 0."""
    origin: pa.Table
    """A row a beat: what of `data.store.ORIGIN` the file knows, and where it has labels, these as text: target."""


class BeatFile:
    """A Parquet or CSV file of beats; iterated, its pieces. Memory holds one."""

    def __init__(self, kind: str, place: Path) -> None:
        """
        Args:
            kind: csv or parquet.
            place: the file's path, with @ and its sampling rate in Hz behind it if that is not 125.

        Raises:
            ValueError: as `read_own`, or beats that are not of 187 samples and come without a rate; one line.
        """
        self.kind = kind
        self.path, self.rate_hz = path_and_rate(place)
        check_is_data(self.path)
        self.num_rows = self.num_silent = self.num_flat = 0
        self.counts, self.scaled = False, True
        self.changes: list[str] = []
        """What is done to every beat."""
        self.is_own = kind == "parquet" and self._was_written_by_us()
        if self.is_own:
            check_no_rate(self.path, self.rate_hz)
        else:
            self._look_through()

    @property
    def remarks(self) -> tuple[str, ...]:
        """What reading changed and left out, a line each; complete once all pieces were read."""
        dropped = [f"dropped {self.num_silent:,} beats: {SILENT}"] if self.num_silent else []
        scaling = [] if self.is_own else scaling_remarks(self.scaled, self.num_flat)
        return tuple(f"{self.path.name}: {remark}" for remark in (*dropped, *self.changes, *scaling))

    def __iter__(self) -> Iterator[Piece]:
        self.num_silent = self.num_flat = 0
        return self._own() if self.is_own else self._fitted()

    def _was_written_by_us(self) -> bool:
        with opened(self.path) as file:
            if not is_own(file):
                return False
            description(self.path, file)
            self.num_rows = file.metadata.num_rows
            return True

    def _own(self) -> Iterator[Piece]:
        first = 0
        for beats, origin in read_pieces(self.path):
            label = [beats.classes[place] for place in beats.labels.tolist()]
            row = np.arange(first, first + len(beats))
            yield Piece(beats, row, origin.append_column("target", pa.array(label)))
            first += len(beats)

    def _look_through(self) -> None:
        """The questions to the whole file."""
        self.counts = self._first_counts()
        ranges = []
        for rows in map(self._without_index, self._rows()):
            self._check_width(rows)
            values, self.changes = to_layout(self.path, rows, self.rate_hz)
            sounding = values[(values != 0).any(axis=1)]
            ranges += [(sounding.min(), sounding.max())] if len(sounding) else []
            self.num_rows += len(values)
        if not ranges:
            raise ValueError(f"{self.path} has {self.num_rows} rows {SILENT} and no other")
        low, high = zip(*ranges, strict=True)
        self.scaled = is_scaled(min(low), max(high))

    def _first_counts(self) -> bool:
        """Whether the first column counts the rows, all of them; of two without a header it may do so by chance."""
        start, num_rows, headed = 0.0, 0, True
        for rows in self._rows():
            if not rows.first and rows.headed:
                start = float(rows.values[0, 0])
            if not counts_rows(rows, start):
                return False
            num_rows, headed = num_rows + len(rows.values), rows.headed
        return headed or num_rows > 2

    def _check_width(self, rows: Rows) -> None:
        width = rows.values.shape[1]
        if self.rate_hz is None and width != NUM_SAMPLES:
            raise ValueError(
                f"{self.path} has beats of {width} samples, not {NUM_SAMPLES}: say at which rate they are sampled, "
                f"as {self.kind}:{self.path}@RATE_HZ"
            )

    def _without_index(self, rows: Rows) -> Rows:
        return (without_first if self.counts else check_signal)(self.path, rows)

    def _fitted(self) -> Iterator[Piece]:
        for rows in map(self._without_index, self._rows()):
            values, _ = to_layout(self.path, rows, self.rate_hz)
            sounding = (values != 0).any(axis=1)
            self.num_silent += int((~sounding).sum())
            if sounding.any():
                signal = scale(values[sounding], self.scaled)
                self.num_flat += int((signal == 0).all(axis=1).sum())
                row = rows.first + np.flatnonzero(sounding)
                yield Piece(self._beats(signal), row, self._origin(rows).filter(pa.array(sounding)))

    def _origin(self, rows: Rows) -> pa.Table:
        origin = origin_of(self.path, rows)
        if LABEL not in rows.roles:
            return origin
        return origin.append_column("target", column_of(self.path, rows, LABEL, pa.string()))

    def _beats(self, signal: NDArray[np.float32]) -> Beats:
        tensor = torch.from_numpy(signal).unsqueeze(1)
        return Beats(
            signal=tensor,
            target=None,
            valid_length=measure_length(tensor),
            classes=(),
            rate_hz=RATE_HZ,
            source=self.path.name,
            fingerprint=derive(self.path.name, signal),
        )

    def _rows(self) -> Iterator[Rows]:
        return self._csv_rows() if self.kind == "csv" else self._parquet_rows()

    def _csv_rows(self) -> Iterator[Rows]:
        with self.path.open("rb") as stream:
            layout, names = csv_layout(self.path, stream)
            blocks = iterate_rows(self.path, stream, names, texts=list(layout.roles.values()))
            first = 0
            for values, others in blocks:
                table = pa.Table.from_batches([others])
                yield Rows(layout.names, values, table, layout.roles, layout.headed, first)
                first += len(values)

    def _parquet_rows(self) -> Iterator[Rows]:
        with opened(self.path, BUFFER_BYTES) as file:
            layout, dtype = parquet_layout(self.path, file.schema_arrow)
            roles = list(layout.roles.values())
            first = 0
            for batch in file.iter_batches(AT_ONCE, columns=[*layout.names, *roles], use_threads=False):
                values = batch.select(layout.names).to_tensor(null_to_nan=True, row_major=True).to_numpy()
                others = pa.Table.from_batches([batch.select(roles)])
                others.validate(full=True)  # that text is UTF-8
                yield Rows(layout.names, values.astype(dtype), others, layout.roles, layout.headed, first)
                first += len(batch)
