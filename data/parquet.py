"""Parquet tables of beats, opened, checked and decoded a few columns at a time."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

LFS_POINTER = b"version https://git-lfs"
TOLERANCE = 1e-3
VALUES_AT_ONCE = 1 << 19
"""Decoded at a time by each thread, 2 MB as float32: a whole table would double the memory."""

ROWS_AT_ONCE = 16384

# Arrow's own pool keeps what it frees: 70 MB more at the peak of reading 109,000 beats.
pa.set_memory_pool(pa.system_memory_pool())


@contextmanager
def opened(path: Path, buffer_bytes: int = 0) -> Iterator[pq.ParquetFile]:
    """A Parquet file with rows in it; whatever its parsing trips over is one line.

    Args:
        buffer_bytes: read of a column at a time; 0 for all that a row group has of it.

    Raises:
        ValueError: not a whole Parquet file, or one without rows.
    """
    check_is_data(path)
    try:
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=buffer_bytes, page_checksum_verification=True) as file:
            _check_sizes(path, file.metadata)
            yield file
    except (pa.ArrowException, OSError, UnicodeDecodeError, json.JSONDecodeError, MemoryError) as error:
        raise ValueError(f"{path} is not a whole Parquet file: {' '.join(str(error).split())[:200]}") from error


def _check_sizes(path: Path, metadata: pq.FileMetaData) -> None:
    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    if metadata.num_rows == 0:
        raise ValueError(f"{path} has no rows")
    if min(sizes, default=0) < 0 or sum(sizes) != metadata.num_rows:
        raise pa.ArrowInvalid("its row groups do not add up to its rows")


def is_pointer(path: Path) -> bool:
    """Whether a Git LFS pointer stands in the file's place."""
    with path.open("rb") as stream:
        return stream.read(len(LFS_POINTER)) == LFS_POINTER


def check_is_data(path: Path) -> None:
    """Refuse what cannot be a data file: nothing there, a folder, an empty file, a Git LFS pointer.

    Raises:
        ValueError: one line naming the file.
    """
    if not path.exists():
        raise ValueError(f"{path} does not exist")
    if not path.is_file():
        raise ValueError(f"{path} is a folder, not a file of beats" if path.is_dir() else f"{path} is not a file")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes)")
    if is_pointer(path):
        raise ValueError(
            f"{path} is a Git LFS pointer, not the data: run `git lfs pull` in the folder it came from, "
            f"or `python -m data get`"
        )


def check_names(path: Path, names: Sequence[str]) -> None:
    unclear = next((name for name in names if not name.isprintable()), None)
    if unclear is not None:
        raise ValueError(f"{path}: column name {unclear!r} is not one line of text")
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise ValueError(f"{path}: column {repeated} is there more than once")


def check_order(path: Path, names: Sequence[str]) -> None:
    """Columns that are numbered must be in the order of their numbers: their place is the time."""
    if all(name.isdecimal() for name in names):
        for name, following in itertools.pairwise(names):
            if int(following) <= int(name):
                raise ValueError(f"{path}: column {following} follows column {name}; samples must be in order of time")


def check_numeric(path: Path, field: pa.Field) -> None:
    if not (pa.types.is_integer(field.type) or pa.types.is_floating(field.type)):
        raise ValueError(f"{path}: column {field.name} holds {' '.join(str(field.type).split())}, not numbers")


def index_columns(schema: pa.Schema) -> set[str]:
    """A plain range index is a record in pandas' metadata, not a name: it has no column."""
    pandas = json.loads((schema.metadata or {}).get(b"pandas", b"{}"))
    names = pandas.get("index_columns") if isinstance(pandas, dict) else None
    return {name for name in names if isinstance(name, str)} if isinstance(names, list) else set()


def read_columns(
    path: Path,
    file: pq.ParquetFile,
    names: Sequence[str],
    groups: Sequence[int] | None = None,
    dtype: type[np.number] = np.float32,
) -> NDArray[Any]:
    """Numeric columns of the opened file side by side, of all row groups or of some; one thread for each core.

    Returns:
        (num_rows, num_columns) of `dtype`; NaN where a value is missing.
    """
    groups = range(file.num_row_groups) if groups is None else groups
    ends = np.cumsum([0, *(file.metadata.row_group(group).num_rows for group in groups)])
    values = np.empty((ends[-1], len(names)), dtype)
    blocks: list[Block] = []
    for group, first_row, last_row in zip(groups, ends[:-1], ends[1:], strict=True):
        step = max(1, VALUES_AT_ONCE // max(1, last_row - first_row))
        for first in range(0, len(names), step):
            some = slice(first, first + step)
            blocks.append(Block(group, names[some], values[first_row:last_row, some]))
    workers = min(os.cpu_count() or 1, len(blocks))
    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(lambda first: _read_blocks(path, file.metadata, blocks[first::workers]), range(workers)):
            pass
    return values


class Block(NamedTuple):
    """Some columns of a row group, and where they go."""

    group: int
    names: Sequence[str]
    values: NDArray[np.number]


def _read_blocks(path: Path, metadata: pq.FileMetaData, blocks: Sequence[Block]) -> None:
    """Arrow brings columns side by side, six times as fast as NumPy would."""
    with (
        pq.ParquetFile(path, metadata=metadata, pre_buffer=False, page_checksum_verification=True) as file,
        np.errstate(over="ignore", invalid="ignore"),
    ):
        for group, names, values in blocks:
            table = file.read_row_group(group, columns=list(names), use_threads=False)
            if len(table) != len(values):
                raise pa.ArrowInvalid(f"row group {group} has {len(table)} rows, not {len(values)}")
            row = 0
            for batch in table.to_batches(max_chunksize=ROWS_AT_ONCE):
                values[row : row + len(batch)] = batch.to_tensor(null_to_nan=True, row_major=True).to_numpy()
                row += len(batch)


def check_signal(path: Path, signal: NDArray[np.float32], names: Sequence[str], first_row: int = 0) -> None:
    """See that every value lies within 0…1; what rounding has put beside it is moved there.

    Raises:
        ValueError: a value that is no number or farther off; names row and column.
    """
    if len(signal) == 0:
        return
    low, high = signal.min(), signal.max()
    if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):  # a NaN fails both
        good = (signal >= -TOLERANCE) & (signal <= 1 + TOLERANCE)
        row, column = divmod(int(good.argmin()), signal.shape[1])
        value = signal[row, column]
        wrong = "outside 0…1" if np.isfinite(value) else "not a finite number"
        raise ValueError(f"{path}: row {first_row + row}, column {names[column]}: signal {value:g} is {wrong}")
    if low < 0 or high > 1:
        np.clip(signal, 0, 1, out=signal)


def check_label(path: Path, label: NDArray[np.floating] | NDArray[np.integer], classes: Sequence[str]) -> None:
    good = (label >= 0) & (label < len(classes)) & (label == np.floor(label))
    if not good.all():
        row = int(good.argmin())
        choices = ", ".join(f"{number} {name}" for number, name in enumerate(classes))
        raise ValueError(f"{path}: row {row}, column target: label {label[row]:g} is not one of {choices}")
