"""Parquet in: the course's files, checked, as Beats."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from data.beats import NUM_SAMPLES, RATE_HZ, Beats, measure_length
from data.known import CLASSES, FILES, KNOWN_FILES
from experiments.files import sha256

LFS_POINTER = b"version https://git-lfs"
TOLERANCE = 1e-3
COLUMNS_AT_ONCE = 8


class MissingFile(ValueError):
    """A data set's file is not where it should be."""


def ptb(part: str, data_dir: Path) -> Beats:
    return read_parquet(find("ptb", part, data_dir), CLASSES["ptb"])


def arrhythmia(part: str, data_dir: Path) -> Beats:
    return read_parquet(find("arrhythmia", part, data_dir), CLASSES["arrhythmia"])


def find(name: str, part: str, data_dir: Path) -> Path:
    """Path of a data set's file.

    Raises:
        MissingFile: it is not there; names the ways to get it.
    """
    path = data_dir / FILES[name][part]
    if not path.exists():
        raise MissingFile(
            f"{path} is missing: run `python -m data get {name}`, or copy it from the course repository's data folder "
            f"(clone MADS-exam-25 and run `git lfs pull`), or name another folder with HEART_DATA_DIR or --data-dir"
        )
    return path


def read_parquet(path: Path, classes: Sequence[str], *, num_samples: int = NUM_SAMPLES) -> Beats:
    """Read beats from a Parquet file of `num_samples` signal columns, in order, and a column `target`.

    Signal columns may have any name and any numeric type; columns that pandas stored as an index are passed over.

    Args:
        classes: name of each label, from label 0 on.

    Raises:
        ValueError: the file is not such a table; one line naming the file and, where there is one, the row
            (counted from 0), the column and the value.
    """
    check_is_data(path)
    try:
        with pq.ParquetFile(path) as file:
            names = _columns(path, file.schema_arrow, num_samples)
            if file.metadata.num_rows == 0:
                raise ValueError(f"{path} has no rows")
            label = file.read(columns=["target"])["target"].to_numpy().astype(np.float64)
            signal = _read_signal(file, names)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is not a whole Parquet file: {' '.join(str(error).split())[:200]}") from error
    _check_signal(path, signal, names)
    _check_label(path, label, classes)
    np.clip(signal, 0, 1, out=signal)
    signal_tensor = torch.from_numpy(signal).unsqueeze(1)
    fingerprint = sha256(path)
    known = KNOWN_FILES.get(fingerprint)
    return Beats(
        signal=signal_tensor,
        target=torch.from_numpy(label.astype(np.int64)),
        valid_length=measure_length(signal_tensor),
        classes=tuple(classes),
        rate_hz=RATE_HZ,
        source=known.source if known else f"{path.name} (unrecognised)",
        fingerprint=fingerprint,
    )


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
        raise ValueError(f"{path} is a folder, not a Parquet file" if path.is_dir() else f"{path} is not a file")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes)")
    if is_pointer(path):
        raise ValueError(
            f"{path} is a Git LFS pointer, not the data: run `git lfs pull` in the folder it came from, "
            f"or `python -m data get`"
        )


def _columns(path: Path, schema: pa.Schema, num_samples: int) -> list[str]:
    """Names of the signal columns, in order."""
    names = schema.names
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise ValueError(f"{path}: column {repeated} is there more than once")
    if "target" not in names:
        raise ValueError(f"{path} has no column target")
    index = _index_columns(schema)
    signal = [name for name in names if name != "target" and name not in index]
    for name in [*signal, "target"]:
        kind = schema.field(name).type
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
            raise ValueError(f"{path}: column {name} holds {kind}, not numbers")
    if len(signal) != num_samples:
        raise ValueError(f"{path} has {len(signal)} signal columns beside target; expected {num_samples}")
    return signal


def _index_columns(schema: pa.Schema) -> set[str]:
    """A plain range index is a record in pandas' metadata, not a name: it has no column."""
    pandas = json.loads((schema.metadata or {}).get(b"pandas", b"{}"))
    return {name for name in pandas.get("index_columns", []) if isinstance(name, str)}


def _read_signal(file: pq.ParquetFile, names: list[str]) -> NDArray[np.float32]:
    """Read a few columns at a time: a whole table, and float64 at that, would take three times the array's memory."""
    signal = np.empty((file.metadata.num_rows, len(names)), np.float32)
    with np.errstate(over="ignore"):
        for first in range(0, len(names), COLUMNS_AT_ONCE):
            some = names[first : first + COLUMNS_AT_ONCE]
            table = file.read(columns=some)
            for column, name in enumerate(some, start=first):
                signal[:, column] = table[name].to_numpy()
    return signal


def _check_signal(path: Path, signal: NDArray[np.float32], names: list[str]) -> None:
    if not (signal.min() >= -TOLERANCE and signal.max() <= 1 + TOLERANCE):  # a NaN fails both comparisons
        good = (signal >= -TOLERANCE) & (signal <= 1 + TOLERANCE)
        row, column = divmod(int(good.argmin()), signal.shape[1])
        value = signal[row, column]
        wrong = "outside 0…1" if np.isfinite(value) else "not a finite number"
        raise ValueError(f"{path}: row {row}, column {names[column]}: signal {value:g} is {wrong}")


def _check_label(path: Path, label: NDArray[np.float64], classes: Sequence[str]) -> None:
    good = (label >= 0) & (label < len(classes)) & (label == np.floor(label))
    if not good.all():
        row = int(good.argmin())
        choices = ", ".join(f"{number} {name}" for number, name in enumerate(classes))
        raise ValueError(f"{path}: row {row}, column target: label {label[row]:g} is not one of {choices}")
