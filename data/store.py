"""Files of our own: Parquet of beats that adds where each came from.

The description is sealed and has a SHA-256 of what each row group holds, so that damage is seen wherever it is: a
page's own checksum leaves out all that says how to read the page. Files of others carry none: damage that leaves a
readable table shows only in their SHA-256, which `data.known` compares.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from data.beats import NUM_SAMPLES, Beats, derive, measure_length
from data.intervals import RATIOS
from data.parquet import check_label, check_signal, opened, read_columns
from data.recorded import Recorded, group_codes
from experiments.files import atomic, sha256

BEATS_A_GROUP = 8192
"""Beats of a row group in files of our own: 6 MB, the unit that is read at a time."""
RATIO_NAMES = tuple(ratio.name for ratio in RATIOS)
ORIGIN: dict[str, pa.DataType] = {
    "patient": pa.string(),
    "record": pa.string(),
    "sample": pa.int64(),
    "lead": pa.string(),
    "symbol": pa.string(),
    "rr_before_s": pa.float32(),
    "rr_after_s": pa.float32(),
    "fold": pa.int8(),
}
"""Columns of a file of our own beside signal, target and RR ratios; a source has those that it knows."""
DESCRIPTION = b"heartbeats"


def read_recorded(path: Path, records: Collection[str] | None = None) -> Recorded:
    """Read a file that `Writer` wrote, or those of its row groups that hold the named records.

    Raises:
        ValueError: no such file, damage, or a file of another layout.
    """
    with opened(path) as file:
        about = description(path, file)
        found = _read_groups(path, file, about, _groups_of(path, about, records))
    beats = replace(found.beats, fingerprint=sha256(path), dropped=about["dropped"], remarks=tuple(about["remarks"]))
    if records is None:
        return Recorded(beats, found.origin)
    wanted = np.isin(found.origin["record"].to_pylist(), list(records))
    return Recorded(beats.select(torch.from_numpy(wanted)), found.origin.filter(pa.array(wanted)))


def read_pieces(path: Path) -> Iterator[Recorded]:
    """What `read_recorded` gives, a row group at a time, each verified before it is given."""
    with opened(path) as file:
        about = description(path, file)
        for number in range(file.num_row_groups):
            yield _read_groups(path, file, about, [number])


def _read_groups(path: Path, file: pq.ParquetFile, about: Mapping[str, Any], groups: list[int]) -> Recorded:
    names, origin_names = list(about["signal"]), [name for name in ORIGIN if name in about["columns"]]
    signal = read_columns(path, file, names, groups)
    target = read_columns(path, file, ["target"], groups, np.int64)[:, 0]
    intervals = read_columns(path, file, RATIO_NAMES, groups)
    origin = file.read_row_groups(groups, columns=origin_names)
    _check_groups(path, {number: about["groups"][number] for number in groups}, signal, target, intervals, origin)
    check_signal(path, signal, names)
    check_label(path, target, about["classes"])
    tensor = torch.from_numpy(signal).unsqueeze(1)
    beats = Beats(
        signal=tensor,
        target=torch.from_numpy(target),
        valid_length=measure_length(tensor),
        classes=tuple(about["classes"]),
        rate_hz=about["rate_hz"],
        source=about["source"],
        fingerprint=derive("", signal, target),
        group=group_codes(origin["patient"]) if "patient" in origin_names else None,
        intervals=torch.from_numpy(intervals),
    )
    return Recorded(beats, origin)


def _groups_of(path: Path, about: Mapping[str, Any], records: Collection[str] | None) -> list[int]:
    """Row groups that hold the named records, or all."""
    if records is not None and "record" not in about["columns"]:
        raise ValueError(f"{path} has no column record")
    groups = enumerate(about["groups"])
    found = [number for number, group in groups if records is None or not set(records).isdisjoint(group["records"])]
    if not found:
        raise ValueError(f"{path} has no beats of the records that are asked for")
    return found


def _check_groups(
    path: Path,
    groups: Mapping[int, dict[str, Any]],
    signal: NDArray[np.float32],
    target: NDArray[np.int64],
    intervals: NDArray[np.float32],
    origin: pa.Table,
) -> None:
    first = 0
    for number, group in groups.items():
        part = slice(first, first + group["num_beats"])
        if describe_group(signal[part], target[part], intervals[part], origin[part]) != group:
            raise ValueError(f"{path} is damaged: row group {number} differs from its SHA-256")
        first = part.stop


class Writer:
    """Writes a file of our own piece by piece, whole or not at all; memory holds one row group.

    Raises:
        OSError: the disk is full, or the folder cannot be written to; nothing is left behind.
    """

    def __init__(self, path: Path, num_samples: int = NUM_SAMPLES) -> None:
        self.signal = [str(number) for number in range(num_samples)]
        self._atomic = atomic(path)
        self._stream = self._atomic.__enter__()
        self._writer: pq.ParquetWriter | None = None
        self._waiting: list[pa.Table] = []
        self._num_waiting = self.num_beats = 0
        self._about: dict[str, Any] = {}
        self._groups: list[dict[str, Any]] = []
        self._dropped: dict[str, int] = {}
        self._remarks: dict[str, None] = {}

    def __enter__(self) -> Self:
        return self

    def append(self, piece: Recorded) -> None:
        """Add beats of one lead; all pieces have the same classes and columns."""
        beats, origin = piece
        assert beats.intervals is not None
        columns = [*beats.signal[:, 0].numpy().T, beats.labels.numpy(), *beats.intervals.numpy().T]
        table = pa.table([pa.array(column) for column in columns], names=[*self.signal, "target", *RATIO_NAMES])
        for name in origin.column_names:
            table = table.append_column(name, origin[name].cast(ORIGIN[name]))
        self.remark(*beats.remarks)
        for reason, count in beats.dropped.items():
            self._dropped[reason] = self._dropped.get(reason, 0) + count
        self._about = {
            "signal": self.signal,
            "columns": _columns(table.schema),
            "classes": list(beats.classes),
            "rate_hz": beats.rate_hz,
            "source": beats.source,
        }
        self._waiting.append(table)
        self._num_waiting += len(table)
        while self._num_waiting >= BEATS_A_GROUP:
            self._write_group(BEATS_A_GROUP)

    def remark(self, *remarks: str) -> None:
        """Say, once each, what was done to the beats."""
        self._remarks |= dict.fromkeys(remarks)

    def _write_group(self, num_beats: int) -> None:
        table = pa.concat_tables(self._waiting)
        if self._writer is None:
            self._writer = pq.ParquetWriter(
                self._stream,
                table.schema,
                compression="zstd",
                use_dictionary=[name for name in ORIGIN if name in table.column_names],  # pyright: ignore[reportArgumentType]
                write_statistics=False,
                write_page_checksum=True,
            )
        group = table[:num_beats]
        signal, (target,), intervals = (
            np.stack([column.to_numpy() for column in group.select(names).columns])
            for names in (self.signal, ["target"], RATIO_NAMES)
        )
        origin = group.select([name for name in ORIGIN if name in group.column_names])
        self._groups.append(describe_group(signal.T, target, intervals.T, origin))
        self._writer.write_table(group, row_group_size=num_beats)
        self._waiting, self._num_waiting = [table.slice(num_beats)], len(table) - num_beats
        self.num_beats += num_beats

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                if self._num_waiting:
                    self._write_group(self._num_waiting)
                if self._writer is None:
                    raise ValueError("there is not one beat to write")
                about = {
                    **self._about,
                    "num_beats": self.num_beats,
                    "groups": self._groups,
                    "dropped": self._dropped,
                    "remarks": list(self._remarks),
                }
                self._writer.add_key_value_metadata({DESCRIPTION.decode(): seal(about)})
                self._writer.close()
        except BaseException as failure:
            self._atomic.__exit__(type(failure), failure, failure.__traceback__)
            raise
        self._atomic.__exit__(kind, error, trace)


def describe_group(
    signal: NDArray[np.float32], target: NDArray[np.int64], intervals: NDArray[np.float32], origin: pa.Table
) -> dict[str, Any]:
    """What the description tells of a row group."""
    records = origin["record"].unique().to_pylist() if "record" in origin.column_names else []
    return {
        "num_beats": len(signal),
        "records": records,
        "beats": derive("", signal, target),
        "origin": derive("", intervals, *(origin[name].to_pylist() for name in origin.column_names)),
    }


def _columns(schema: pa.Schema) -> dict[str, str]:
    return {field.name: str(field.type) for field in schema}


def seal(about: Mapping[str, Any]) -> str:
    """JSON of a description, behind its own SHA-256."""
    text = json.dumps(about, sort_keys=True)
    return f"{hashlib.sha256(text.encode()).hexdigest()} {text}"


def is_own(file: pq.ParquetFile) -> bool:
    return DESCRIPTION in (file.metadata.metadata or {})


def description(path: Path, file: pq.ParquetFile) -> dict[str, Any]:
    """What `Writer` said of the beats.

    Raises:
        ValueError: another layout, or a description that does not agree with its seal or with the table.
    """
    if not is_own(file):
        raise ValueError(f"{path} was not written by `python -m data build`")
    digest, _, text = file.metadata.metadata[DESCRIPTION].partition(b" ")
    if hashlib.sha256(text).hexdigest().encode() != digest:
        raise ValueError(f"{path} is damaged: its description differs from its SHA-256")
    about = json.loads(text)
    told = [group["num_beats"] for group in about.get("groups", ())]
    found = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    if (told, about["columns"]) != (found, _columns(file.schema_arrow)):
        raise ValueError(f"{path} is damaged: its table is not the one that its description tells of")
    return about
