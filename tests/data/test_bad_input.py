"""Whatever is done to a good file, reading it gives the right beats or one line that names it, and nothing else."""

import csv
import datetime
import itertools
import math
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data import OWN, parts
from data.beats import Beats, measure_length
from data.own import read_own
from data.parquet import TOLERANCE
from data.published import read_course
from data.recorded import Recorded
from data.store import DESCRIPTION, Writer, read_recorded
from data.synthetic import synthetic_arrhythmia

NUM_ROWS, NUM_SAMPLES = 24, 6
SIGNAL = [str(sample) for sample in range(NUM_SAMPLES)]
CLASSES = ("a", "b")

Cells = dict[str, list[Any]]
"""A table, by column."""


def good() -> Cells:
    signal = np.random.default_rng(0).integers(1, 65, (NUM_ROWS, NUM_SAMPLES)) / 64
    signal[::3, 4:] = 0
    columns: Cells = dict(zip(SIGNAL, signal.T.tolist(), strict=True))
    return columns | {
        "target": [row % 2 for row in range(NUM_ROWS)],
        "patient": [f"p{row % 5}" for row in range(NUM_ROWS)],
    }


def write_parquet(path: Path, names: Sequence[str], columns: Sequence[Any], row_group_size: int = 10) -> None:
    table = pa.table([pa.array(column) for column in columns], names=list(names))
    pandas = {"pandas": '{"index_columns": ["day"]}'}
    pq.write_table(table.replace_schema_metadata(pandas), path, row_group_size=row_group_size)


def write_csv(path: Path, names: Sequence[str], columns: Sequence[Any]) -> None:
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([names, *zip(*columns, strict=True)])


def write_own(path: Path) -> None:
    beats = synthetic_arrhythmia(60, 0)
    signal = beats.signal[:, :, :NUM_SAMPLES].contiguous()
    beats = replace(beats, signal=signal, valid_length=measure_length(signal), dropped={"too short": 3})
    number = np.arange(60)
    origin = pa.table(
        {
            "patient": pa.array([f"p{row % 5}" for row in number]),
            "record": pa.array([str(100 + row // 20) for row in number]),
            "sample": pa.array(number * 300),
            "rr_before_s": pa.array((number / 60).astype(np.float32)),
            "fold": pa.array(number % 10 + 1, pa.int8()),
        }
    )
    with Writer(path, num_samples=NUM_SAMPLES) as writer:
        writer.append(Recorded(beats, origin))


@cache
def content_of(kind: str, path: Path) -> bytes:
    """A good file's; `path` is overwritten."""
    if kind == "own":
        write_own(path)
    else:
        WRITE[kind](path, list(good()), list(good().values()))
    return path.read_bytes()


def read(kind: str, path: Path) -> Recorded:
    if kind == "course":
        return Recorded(read_course(path, CLASSES, num_samples=NUM_SAMPLES), pa.table({}))
    return read_own("csv" if kind == "csv" else "parquet", path)


def read_or_refuse(kind: str, path: Path) -> Recorded | None:
    """What is in the file, or None where it is refused as it should be."""
    try:
        return read(kind, path)
    except ValueError as error:
        assert_one_line(error, path)
        return None


def assert_one_line(error: ValueError, path: Path) -> None:
    assert type(error) is ValueError, repr(error)
    assert path.name in str(error) and len(str(error).splitlines()) == 1, str(error)


def assert_beats(beats: Beats) -> None:
    """The rules that hold for any beats."""
    assert beats.signal.isfinite().all() and 0 <= beats.signal.min() <= beats.signal.max() <= 1
    assert torch.equal(beats.valid_length, measure_length(beats.signal))
    assert beats.target is None or len(beats.target) == len(beats)


KINDS = ("course", "csv", "parquet")
"""Layouts of others: no checksum guards them."""
WRITE = {"course": write_parquet, "csv": write_csv, "parquet": write_parquet}
LABEL_NAMES = {kind: ("target",) if kind == "course" else ("target", "Target", "label") for kind in KINDS}
VALUES = (math.nan, math.inf, -math.inf, None, 0.0, -0.25, 1.0005, 2.0, 1e-30, 1e30, 1e300, -1e-300, True, "x", "", 7)
LABELS = (-1, 2, 99, 0.5, 1.0, math.nan, math.inf, None, "N", "", 2**62)
TYPES: dict[str, Callable[[Any], Any]] = {
    "text": str,
    "bool": bool,
    "date": lambda value: datetime.date(2020, 1, 1) + datetime.timedelta(days=int(value)),
    "list": lambda value: [value],
    "struct": lambda value: {"a\nb": value},
    "bytes": lambda value: str(value).encode(),
    "nothing": lambda _: None,
    "one": lambda _: 1,
    "integer": int,
    "tiny": lambda value: value * 1e-30,
    "huge": lambda value: value * 1e30,
}


Accident = tuple[str, int, int, Any]
"""What happens, to which column, to which other column or row, and a value."""

ACCIDENTS: dict[str, st.SearchStrategy[Any]] = {
    "drop": st.none(),
    "swap": st.none(),
    "again": st.sampled_from(("same", "age", "label", "7")),
    "rename": st.sampled_from(("", "x\ny", "Target", "subject", "9", "naïve", "fold", "record")),
    "type": st.sampled_from(sorted(TYPES)),
    "value": st.sampled_from(VALUES),
    "label": st.sampled_from(LABELS),
    "all labels": st.sampled_from(LABELS),
    "rows": st.integers(0, NUM_ROWS),
    "silence": st.none(),
}
COLUMN, ROW = st.integers(0, NUM_SAMPLES + 1), st.integers(0, NUM_ROWS - 1)
accidents = st.lists(
    st.sampled_from(sorted(ACCIDENTS)).flatmap(lambda what: st.tuples(st.just(what), COLUMN, ROW, ACCIDENTS[what])),
    min_size=1,
    max_size=3,
)


def spoil(happened: Sequence[Accident]) -> tuple[list[str], list[list[Any]]]:
    """Names, which may repeat, and cells of the good table after all that; what cannot happen any more does not."""
    columns = good()
    names, cells = list(columns), list(columns.values())
    for what, place, row, value in happened:
        place, other, row = place % len(names), row % len(names), row % max(1, len(cells[0]))
        targets = [cells[place] for place, name in enumerate(names) if name == "target" and cells[0]]
        if what == "drop" and len(names) > 1:
            del names[place], cells[place]
        elif what == "swap":
            names[place], names[other] = names[other], names[place]
            cells[place], cells[other] = cells[other], cells[place]
        elif what == "again":
            names.append(names[place] if value == "same" else value)
            cells.append(list(cells[place]))
        elif what == "rename":
            names[place] = value
        elif what == "type" and all(isinstance(cell, int | float) and abs(cell) < 1e5 for cell in cells[place]):
            cells[place] = [TYPES[value](cell) for cell in cells[place]]
        elif what == "value" and cells[0]:
            cells[place][row] = value
        elif what == "label" and targets:
            targets[0][row] = value
        elif what == "all labels" and targets:
            targets[0][:] = [value] * len(targets[0])
        elif what == "rows":
            cells = [column[row : max(row, value)] for column in cells]
        elif what == "silence" and cells[0]:
            for name, column in zip(names, cells, strict=True):
                column[row] = 0.0 if name in SIGNAL else column[row]
    return names, cells


def expected(
    kind: str, names: Sequence[str], cells: Sequence[list[Any]], num_samples: int
) -> tuple[np.ndarray, np.ndarray]:
    """Signal (num_rows, num_samples) by the rules, and which rows are kept: written without the readers' code."""
    others = (*LABEL_NAMES[kind], *(() if kind == "course" else ("patient", "subject", "fold", "record")))
    rows = np.array([column for name, column in zip(names, cells, strict=True) if name not in others], object).T
    values = np.array([[math.nan if cell in (None, "") else float(cell) for cell in row] for row in rows])
    values = np.where(np.isnan(values), 0, values)
    kept = (values != 0).any(axis=1) | (kind == "course")
    inside = values.max() <= 1 + TOLERANCE and values.min() >= -TOLERANCE * values.max()
    signal = np.zeros((len(values), num_samples))
    for row, beat in enumerate(values):
        end = max(np.flatnonzero(beat), default=-1) + 1
        part = beat[:end]
        span = np.ptp(part) if end else 0
        signal[row, :end] = part.clip(0, 1) if inside else (part - part.min()) / span if span else 0
    return signal, kept


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=120, deadline=None, derandomize=True)
@given(happened=accidents)
def test_a_spoilt_table(kind: str, happened: list[Accident], tmp_path_factory: pytest.TempPathFactory) -> None:
    path, (names, cells) = tmp_path_factory.getbasetemp() / f"spoilt.{kind}", spoil(happened)
    try:
        WRITE[kind](path, names, cells)
    except pa.ArrowException:
        assume(False)  # no table can hold such a mixture
    found = read_or_refuse(kind, path)
    if found is None:
        return
    beats = found.beats
    assert_beats(beats)
    assert len(beats) + sum(beats.dropped.values()) == len(cells[0])
    signal, kept = expected(kind, names, cells, beats.signal.shape[2])
    np.testing.assert_allclose(beats.signal[:, 0].numpy(), signal[kept], rtol=1e-5, atol=1e-7)
    label = next((place for place, name in enumerate(names) if name in LABEL_NAMES[kind]), None)
    if label is not None:
        known = [place if kind == "course" else beats.classes[place] for place in beats.labels.tolist()]
        wanted = [cell for cell, keep in zip(cells[label], kept, strict=True) if keep]
        assert list(map(as_number, known)) == list(map(as_number, wanted))


def as_number(label: object) -> object:
    try:
        return float(str(label))
    except ValueError:
        return str(label)


@pytest.mark.parametrize("kind", ("csv", "parquet"))
@settings(max_examples=40, deadline=None, derandomize=True)
@given(happened=accidents, protocol=st.sampled_from(OWN["csv"].protocols))
def test_a_split_of_a_spoilt_table(
    kind: str, happened: list[Accident], protocol: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path, (names, cells) = tmp_path_factory.getbasetemp() / f"split.{kind}", spoil(happened)
    try:
        WRITE[kind](path, names, cells)
    except pa.ArrowException:
        assume(False)
    found = parts(f"{kind}:{path}", protocol, path.parent)
    try:
        train, test = found.load_train(), found.load_test()
    except ValueError as error:
        assert_one_line(error, path)
        return
    assert_beats(train)
    assert_beats(test)
    assert len(train) + len(test) + sum(train.dropped.values()) == len(cells[0])
    if protocol == "patient":
        assert train.group is not None and test.group is not None
        assert not set(train.group.tolist()) & set(test.group.tolist())


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Some bytes changed, lost, doubled or cut off; most of what tells how to read a Parquet file is at its end."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(changed) - 1) | st.integers(max(0, len(changed) - 3000), len(changed) - 1))
        what = draw(st.sampled_from(("flip", "flip", "byte", "lose", "double", "cut")))
        end = place + draw(st.integers(1, 20))
        if what == "flip":
            changed[place] ^= 1 << draw(st.integers(0, 7))
        elif what == "byte":
            changed[place] = draw(st.integers(0, 255))
        elif what == "lose":
            del changed[max(1, place) : end]
        elif what == "double":
            changed[place:place] = changed[place:end]
        elif place:
            del changed[place:]
    return bytes(changed)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=100, deadline=None, derandomize=True)
@given(data=st.data())
def test_damaged_bytes_of_others(kind: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Their pages carry no checksum: what can still be read may be wrong, but obeys the rules of beats."""
    path = tmp_path_factory.getbasetemp() / f"damaged.{kind}"
    path.write_bytes(data.draw(damaged(content_of(kind, path))))
    found = read_or_refuse(kind, path)
    if found is not None:
        assert_beats(found.beats)


@pytest.mark.parametrize("kind", ("course", "parquet"))
def test_a_flip_anywhere_in_a_footer(kind: str, tmp_path: Path) -> None:
    """It tells how to read the pages: sizes below zero or beyond all memory, other types, other names."""
    path = tmp_path / "flipped.parquet"
    write_parquet(path, list(good()), list(good().values()), NUM_ROWS)
    content = path.read_bytes()
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    for place in range(footer, len(content)):
        for bit in {0, place % 8}:
            path.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
            found = read_or_refuse(kind, path)
            if found is not None:
                assert_beats(found.beats)


@pytest.mark.parametrize("kind", ("course", "parquet"))
def test_any_two_counts_of_a_footer(kind: str, tmp_path: Path) -> None:
    """A row more in the file and in its row group than there is: what memory held before must not become a beat."""
    path = tmp_path / "flipped.parquet"
    write_parquet(path, list(good()), list(good().values()), NUM_ROWS)
    content, count, more = path.read_bytes(), bytes([2 * NUM_ROWS]), bytes([2 * NUM_ROWS + 2])  # Thrift's zigzag
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    counts = [place for place in range(footer, len(content)) if content[place : place + 1] == count]
    for first, second in itertools.combinations(counts, 2):
        path.write_bytes(content[:first] + more + content[first + 1 : second] + more + content[second + 1 :])
        found = read_or_refuse(kind, path)
        assert found is None or len(found.beats) == NUM_ROWS


@pytest.mark.parametrize("kind", ("course", "parquet"))
def test_sizes_beyond_all_memory_are_refused(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "huge.parquet"
    write_parquet(path, list(good()), list(good().values()))

    def empty(*_: object) -> None:
        raise MemoryError("Unable to allocate 7 EiB")

    monkeypatch.setattr("data.parquet.np.empty", empty)
    assert read_or_refuse(kind, path) is None


@pytest.mark.parametrize("pandas", ["[]", "{}", '{"index_columns": 3}', '{"index_columns": [3, null, {}]}', '"x"', "7"])
def test_odd_notes_of_pandas_are_passed_over(pandas: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.parquet"
    table = pa.table(good())
    pq.write_table(table.replace_schema_metadata({"pandas": pandas}), path)
    assert len(read("parquet", path).beats) == NUM_ROWS


@pytest.mark.parametrize("name", ["0", "target", "log_before_over_last", "patient", "record", "sample", "fold"])
def test_a_changed_value_of_our_own_is_seen(name: str, tmp_path: Path) -> None:
    """Though every page has the right checksum, and the description its seal."""
    path = tmp_path / "own.parquet"
    write_own(path)
    table, sealed = pq.read_table(path), pq.read_metadata(path).metadata[DESCRIPTION]
    changed = table.column(name).to_pylist()
    changed[7] = next(value for value in changed if value != changed[7])
    place = table.column_names.index(name)
    other = table.set_column(place, table.field(name), pa.array(changed, table.field(name).type))
    with pq.ParquetWriter(path, other.schema, write_page_checksum=True) as writer:
        writer.write_table(other)
        writer.add_key_value_metadata({DESCRIPTION.decode(): sealed.decode()})
    with pytest.raises(ValueError, match="row group 0 differs from its SHA-256"):
        read_recorded(path)


@pytest.mark.parametrize("records", [None, ["100", "102"]], ids=["all", "some records"])
@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_damaged_bytes_of_our_own(
    records: list[str] | None, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Never wrong beats, wherever the damage is."""
    path = tmp_path_factory.getbasetemp() / "own.parquet"
    content = content_of("own", path)
    path.write_bytes(content)
    whole = read_recorded(path, records)
    path.write_bytes(data.draw(damaged(content)))
    try:
        found = read_recorded(path, records)
    except ValueError as error:
        assert_one_line(error, path)
        return
    for name in ("signal", "labels", "valid_length", "group", "intervals"):
        assert torch.equal(getattr(found.beats, name), getattr(whole.beats, name)), name
    assert found.origin.equals(whole.origin)
    for name in ("classes", "rate_hz", "source", "dropped", "remarks"):
        assert getattr(found.beats, name) == getattr(whole.beats, name), name


NOT_FILES: dict[str, Callable[[Path], object]] = {
    "missing": Path.exists,
    "a folder": Path.mkdir,
    "empty": Path.touch,
    "a pointer": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\n"),
    "noise": lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)),
    "zeros": lambda path: path.write_bytes(bytes(5000)),
    "a picture": lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100)),
    "magic only": lambda path: path.write_bytes(b"PAR1PAR1"),
    "another encoding": lambda path: path.write_text("a,b,target\n1,2,é\n3,4,é\n", encoding="latin-1"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", NOT_FILES)
def test_what_is_no_file_of_beats_is_refused(case: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "beats"
    NOT_FILES[case](path)
    assert read_or_refuse(kind, path) is None


def test_the_command_says_it_in_one_line(
    tmp_path: Path, python: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    frame = pl.DataFrame(np.random.default_rng(0).random((30, 187)), schema=[str(place) for place in range(187)])
    frame.with_columns(target=pl.arange(30) % 5).write_parquet(tmp_path / "heart_big_train.parq")
    frame.with_columns(y=pl.arange(30) % 2, age=pl.lit(50)).write_csv(tmp_path / "mine.csv")
    course = (tmp_path / "heart_big_train.parq").read_bytes()
    (tmp_path / "heart_big_train.parq").write_bytes(course[:-40])
    for file, said in (("heart_big_train.parq", "is not a whole Parquet file"), ("mine.csv", "column age is neither")):
        done = python("-m", "data", "check", tmp_path / file)
        assert (done.returncode, done.stdout) == (2, ""), done
        assert done.stderr.startswith(f"error: {tmp_path / file}") and said in done.stderr
        assert done.stderr.count("\n") == 1
