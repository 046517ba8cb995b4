"""Files that others publish, in the published split: the course's Parquet, and the same data as Kaggle has them."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from data.beats import NUM_SAMPLES, RATE_HZ, Beats, derive, measure_length
from data.csv import read_rows
from data.known import CLASSES, FILES, KAGGLE_FILES, KNOWN_FILES, MissingFile, kaggle_by_hand
from data.parquet import (
    check_is_data,
    check_label,
    check_names,
    check_numeric,
    check_order,
    check_signal,
    index_columns,
    opened,
    read_columns,
)
from data.physionet import mitdb
from data.recorded import Recorded, parts
from data.split import Parts
from experiments.files import sha256

KAGGLE_ROWS = {
    "ptbdb_normal.csv": 4_046,
    "ptbdb_abnormal.csv": 10_506,
    "mitbih_train.csv": 87_554,
    "mitbih_test.csv": 21_892,
}


def ptb(data_dir: Path, protocol: str) -> Parts:  # noqa: ARG001 (a source's signature)
    return _as_published("ptb", data_dir)


def arrhythmia(data_dir: Path, protocol: str) -> Parts:
    """The published files; for a split that holds records or patients apart, PhysioNet's records of the same beats."""
    return _as_published("arrhythmia", data_dir) if protocol == "beat-random" else mitdb(data_dir, protocol)


def _as_published(name: str, data_dir: Path) -> Parts:
    def read(part: str) -> Beats:
        return read_course(find(name, part, data_dir), CLASSES[name])

    def check() -> None:
        for part in FILES[name]:
            check_is_data(find(name, part, data_dir))

    train = cache(partial(read, "train"))
    known = name == "arrhythmia"  # to be split over beats, patients on both sides
    return Parts(
        load_train=train,
        load_test=partial(read, "test"),
        badge=lambda: "beat-random" if known and "unrecognised" not in train().source else "unknown",
        check=check,
    )


def kaggle_ptb(data_dir: Path, protocol: str) -> Parts:
    """Normal and abnormal beats in a file each: the split is ours, and the patients are not known."""
    name = "kaggle-ptb"

    def read(records: Collection[str] | None) -> Recorded:
        del records  # its one protocol asks for all
        normal, abnormal = (
            _read_kaggle(name, file, data_dir, "PTB Diagnostic (Kaggle)") for file in KAGGLE_FILES[name]
        )
        whole = replace(
            normal,
            signal=torch.cat([normal.signal, abnormal.signal]),
            target=torch.cat([normal.labels, abnormal.labels]),
            valid_length=torch.cat([normal.valid_length, abnormal.valid_length]),
            fingerprint=derive(normal.fingerprint, abnormal.fingerprint),
        )
        return Recorded(whole, pa.table({}))

    return parts(read, protocol, name, partial(_check_kaggle, name, data_dir))


def kaggle_arrhythmia(data_dir: Path, protocol: str) -> Parts:  # noqa: ARG001
    name = "kaggle-arrhythmia"
    train, test = (
        partial(_read_kaggle, name, file, data_dir, "MIT-BIH Arrhythmia (Kaggle)") for file in KAGGLE_FILES[name]
    )
    return Parts(
        load_train=cache(train),
        load_test=test,
        badge=lambda: "beat-random",
        check=partial(_check_kaggle, name, data_dir),
    )


def _check_kaggle(name: str, data_dir: Path) -> None:
    for file in KAGGLE_FILES[name]:
        _find_kaggle(name, file, data_dir)


def _find_kaggle(name: str, file: str, data_dir: Path) -> Path:
    path = data_dir / file
    if not path.exists():
        raise MissingFile(f"{path} is missing: {kaggle_by_hand(name, data_dir)}")
    check_is_data(path)
    return path


def _read_kaggle(name: str, file: str, data_dir: Path, source: str) -> Beats:
    """Read a file without header, 187 samples and the label in a row.

    Raises:
        ValueError: the file is missing, not such a table, or not whole; one line.
    """
    path = _find_kaggle(name, file, data_dir)
    names = [*map(str, range(NUM_SAMPLES)), "target"]
    with path.open("rb") as stream:
        values, _ = read_rows(path, stream, names, dtype=np.float32)
    if len(values) != KAGGLE_ROWS[file]:
        raise ValueError(
            f"{path} has {len(values):,} rows; expected {KAGGLE_ROWS[file]:,}: "
            f"one was taken for a header when the file was written, or the file is not whole"
        )
    signal, label = np.ascontiguousarray(values[:, :NUM_SAMPLES]), values[:, NUM_SAMPLES]
    return replace(_beats(path, names, signal, label, CLASSES[name.removeprefix("kaggle-")]), source=source)


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


def read_course(path: Path, classes: Sequence[str], *, num_samples: int = NUM_SAMPLES) -> Beats:
    """Read beats from a Parquet file of `num_samples` signal columns, in order, and a column `target`.

    Signal columns may have any name and any numeric type; columns that pandas stored as an index are passed over.

    Args:
        classes: name of each label, from label 0 on.

    Raises:
        ValueError: the file is not such a table; one line naming the file and, where there is one, the row
            (counted from 0), the column and the value.
    """
    with opened(path) as file:
        names = course_columns(path, file.schema_arrow, num_samples)
        label = read_columns(path, file, ["target"], dtype=np.float64)[:, 0]
        signal = read_columns(path, file, names)
    return _beats(path, names, signal, label, classes)


def _beats(
    path: Path,
    names: Sequence[str],
    signal: NDArray[np.float32],
    label: NDArray[np.floating],
    classes: Sequence[str],
) -> Beats:
    check_signal(path, signal, names)
    check_label(path, label, classes)
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


def course_columns(path: Path, schema: pa.Schema, num_samples: int) -> list[str]:
    """Names of the signal columns, in order."""
    check_names(path, schema.names)
    if "target" not in schema.names:
        raise ValueError(f"{path} has no column target")
    index = index_columns(schema)
    signal = [name for name in schema.names if name != "target" and name not in index]
    for name in [*signal, "target"]:
        check_numeric(path, schema.field(name))
    if len(signal) != num_samples:
        raise ValueError(f"{path} has {len(signal)} signal columns beside target; expected {num_samples}")
    check_order(path, signal)
    return signal
