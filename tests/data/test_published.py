from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from data import load
from data.known import CLASSES
from data.published import read_course

NSVFQ = CLASSES["arrhythmia"]
COLUMNS = [str(sample) for sample in range(187)]


def table(num_rows: int = 4) -> pl.DataFrame:
    signal = np.random.default_rng(0).random((num_rows, 187), np.float32)
    return pl.DataFrame(signal, schema=COLUMNS).with_columns(target=pl.Series(np.arange(num_rows) % 5))


def put(frame: pl.DataFrame, row: int, column: str, value: float | None) -> pl.DataFrame:
    return frame.with_columns(pl.when(pl.arange(pl.len()) == row).then(value).otherwise(pl.col(column)).alias(column))


def write(frame: pl.DataFrame, path: Path) -> Path:
    frame.write_parquet(path)
    return path


def test_values_order_and_labels_survive(tmp_path: Path) -> None:
    frame = table()
    beats = read_course(write(frame, tmp_path / "a.parq"), NSVFQ)
    np.testing.assert_array_equal(beats.signal[:, 0].numpy(), frame.drop("target").to_numpy())
    assert beats.signal.is_contiguous()
    assert beats.labels.tolist() == [0, 1, 2, 3]
    assert beats.source == "a.parq (unrecognised)"
    assert (beats.rate_hz, beats.classes) == (125.0, NSVFQ)


def test_names_and_types_of_columns_do_not_matter(tmp_path: Path) -> None:
    frame = table()
    renamed = frame.rename({name: f"s.{186 - int(name)}" for name in COLUMNS}).cast(pl.Float64)
    renamed = renamed.select("target", pl.exclude("target"))
    plain = read_course(write(frame, tmp_path / "a.parq"), NSVFQ)
    other = read_course(write(renamed, tmp_path / "b.parq"), NSVFQ)
    assert torch.equal(plain.signal, other.signal)
    assert torch.equal(plain.labels, other.labels)


def test_a_pandas_index_is_not_signal(tmp_path: Path) -> None:
    arrow = table().with_columns(__index_level_0__=pl.Series([9, 8, 7, 6])).to_arrow()
    path = tmp_path / "a.parq"
    pq.write_table(arrow.replace_schema_metadata({"pandas": '{"index_columns": ["__index_level_0__"]}'}), path)
    assert read_course(path, NSVFQ).signal.shape == (4, 1, 187)
    pq.write_table(arrow.replace_schema_metadata({"pandas": '{"index_columns": [{"kind": "range"}]}'}), path)
    with pytest.raises(ValueError, match="188 signal columns"):
        read_course(path, NSVFQ)


def test_a_hair_outside_the_range_is_clipped(tmp_path: Path) -> None:
    frame = put(put(table(), 1, "3", -5e-4), 2, "4", 1.0005)
    signal = read_course(write(frame, tmp_path / "a.parq"), NSVFQ).signal
    assert (signal[1, 0, 3].item(), signal[2, 0, 4].item()) == (0.0, 1.0)


Damage = Callable[[pl.DataFrame], pl.DataFrame]

BAD_TABLES: dict[str, tuple[Damage, list[str]]] = {
    "nan": (lambda f: put(f, 2, "5", float("nan")), ["row 2", "column 5", "nan"]),
    "null": (lambda f: put(f, 2, "5", None), ["row 2", "column 5", "nan"]),
    "inf": (lambda f: put(f, 3, "186", float("inf")), ["row 3", "column 186", "inf"]),
    "too large for float32": (lambda f: put(f.cast(pl.Float64), 0, "0", 1e300), ["row 0", "column 0", "inf"]),
    "millivolts": (lambda f: put(f, 1, "7", -0.25), ["row 1", "column 7", "-0.25", "0…1"]),
    "label 7": (lambda f: put(f, 1, "target", 7), ["row 1", "column target", "label 7", "0 N, 1 S, 2 V, 3 F, 4 Q"]),
    "label -1": (lambda f: put(f, 0, "target", -1), ["row 0", "column target", "label -1", "4 Q"]),
    "label 1.5": (lambda f: put(f, 3, "target", 1.5), ["row 3", "column target", "label 1.5", "4 Q"]),
    "label missing": (lambda f: put(f, 3, "target", None), ["row 3", "column target", "label nan"]),
    "186 columns": (lambda f: f.drop("9"), ["186 signal columns", "expected 187"]),
    "188 columns": (lambda f: f.with_columns(more=pl.lit(0.5)), ["188 signal columns", "expected 187"]),
    "no target": (lambda f: f.drop("target"), ["no column target"]),
    "text": (lambda f: f.with_columns(pl.col("8").cast(pl.String)), ["column 8", "not numbers"]),
    "text labels": (lambda f: f.with_columns(target=pl.lit("N")), ["column target", "not numbers"]),
    "no rows": (lambda f: f.clear(), ["no rows"]),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_bad_tables_are_refused_in_one_line(case: str, tmp_path: Path) -> None:
    damage, said = BAD_TABLES[case]
    refusal = refused(write(damage(table()), tmp_path / "bad.parq"))
    assert [part for part in said if part not in refusal] == []


def test_a_column_twice_is_refused(tmp_path: Path) -> None:
    arrow = table().to_arrow()
    pq.write_table(arrow.rename_columns(["1", *arrow.column_names[1:]]), tmp_path / "bad.parq")
    assert "column 1 is there more than once" in refused(tmp_path / "bad.parq")


def make_whole(path: Path) -> bytes:
    return write(table(50), path).read_bytes()


BAD_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (Path.exists, "does not exist"),
    "folder": (lambda path: path.mkdir(), "is a folder"),
    "empty": (lambda path: path.touch(), "0 bytes"),
    "pointer": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"),
        "is a Git LFS pointer, not the data: run `git lfs pull` in the folder it came from",
    ),
    "csv": (lambda path: path.write_text("0.1,0.2,1\n" * 100), "not a whole Parquet file"),
    "truncated": (lambda path: path.write_bytes(make_whole(path)[:-200]), "not a whole Parquet file"),
    "page overwritten": (
        lambda path: path.write_bytes(make_whole(path).replace(b"\x28\xb5\x2f\xfd", b"\0\0\0\0")),
        "not a whole Parquet file",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_refused_in_one_line(case: str, tmp_path: Path) -> None:
    make, said = BAD_FILES[case]
    make(tmp_path / "bad.parq")
    assert said in refused(tmp_path / "bad.parq")


def refused(path: Path) -> str:
    with pytest.raises(ValueError) as caught:
        read_course(path, NSVFQ)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message


@settings(deadline=None)
@given(
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=6), elements=st.floats(0, 1, width=32)),
    st.booleans(),
)
def test_any_table_is_read_as_it_is(tmp_path_factory: pytest.TempPathFactory, signal: np.ndarray, single: bool) -> None:
    path = tmp_path_factory.mktemp("any") / "a.parq"
    kind = pa.float32() if single else pa.float64()
    columns = [pa.array(column, kind) for column in signal.T]
    names = [f"c{number}" for number in range(signal.shape[1])]
    whole = pa.table([*columns, pa.array(np.ones(len(signal)))], names=[*names, "target"])
    pq.write_table(whole, path, row_group_size=2)
    beats = read_course(path, ("a", "b"), num_samples=signal.shape[1])
    np.testing.assert_array_equal(beats.signal[:, 0].numpy(), signal)
    assert beats.counts() == {"a": 0, "b": len(signal)}


REAL = {
    ("arrhythmia", "train"): ("MIT-BIH Arrhythmia", [72493, 2225, 5789, 642, 6434]),
    ("arrhythmia", "test"): ("MIT-BIH Arrhythmia", [18123, 556, 1447, 161, 1609]),
    ("ptb", "train"): ("PTB-XL stand-in", [8971, 2694]),
    ("ptb", "test"): ("PTB Diagnostic", [806, 2105]),
}


@pytest.mark.parametrize(("name", "part"), REAL)
def test_real_files(name: str, part: str, heart_data_dir: Path) -> None:
    beats = load(name, part, heart_data_dir)
    source, counts = REAL[name, part]
    assert beats.source.startswith(source)
    assert list(beats.counts().values()) == counts
    assert beats.signal.shape == (sum(counts), 1, 187)
    assert 0 <= beats.signal.min() <= beats.signal.max() <= 1
    assert beats.valid_length.min() >= 40
    assert beats.valid_length.max() in (186, 187)
