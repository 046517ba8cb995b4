"""Pieces of a file are, side by side, what reading it whole gives."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray

from data import csv, pieces
from data.beats import NUM_SAMPLES, Beats
from data.own import SILENT, read_own
from data.pieces import BeatFile, Piece
from data.recorded import Recorded
from data.store import BEATS_A_GROUP, Writer
from data.synthetic import synthetic_arrhythmia

NUM_ROWS = 50
NAMES = [str(sample) for sample in range(NUM_SAMPLES)]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "AT_ONCE", 8)
    monkeypatch.setattr(csv, "BLOCK_BYTES", 1 << 14)


def beats(width: int = NUM_SAMPLES) -> NDArray[np.float32]:
    """Scaled to 0…1, zero after their ends."""
    random = np.random.default_rng(0)
    signal = (random.integers(0, 65, (NUM_ROWS, width)) / 64).astype(np.float32)
    signal[:, 0] = 1
    signal[np.arange(width) >= random.integers(width // 2, width, NUM_ROWS)[:, None]] = 0
    return signal


def write(path: Path, columns: dict[str, Any]) -> None:
    if path.suffix == ".csv":
        lines = [",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values(), strict=True))]
        path.write_text("\n".join([*lines, ""]))
    else:
        pq.write_table(pa.table({name: pa.array(column) for name, column in columns.items()}), path, row_group_size=30)


def columns_of(signal: NDArray[np.floating], names: Sequence[str] = NAMES) -> dict[str, Any]:
    return dict(zip(names, signal.T, strict=True))


def some_silent(signal: NDArray[np.float32]) -> NDArray[np.float32]:
    signal[[0, 13, 40]] = 0
    return signal


INDEX = {"": np.arange(NUM_ROWS)}
LABEL = {"target": np.arange(NUM_ROWS) % 3}
TEXT = {"label": np.array(["b", "a"])[np.arange(NUM_ROWS) % 2], "patient": [f"p{row % 4}" for row in range(NUM_ROWS)]}
TABLES: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    "as the course's": ("", lambda: columns_of(beats()) | LABEL),
    "without labels": ("", lambda: columns_of(beats())),
    "with words and an index": ("", lambda: INDEX | columns_of(beats()) | TEXT),
    "in millivolts": ("", lambda: columns_of(3 * beats() - 1) | LABEL),
    "some silent": ("", lambda: columns_of(some_silent(beats())) | LABEL),
    "at 250 Hz": ("@250", lambda: columns_of(beats(300), [f"s{place}" for place in range(300)]) | LABEL),
    "at 125 Hz, long": ("@125", lambda: columns_of(beats(200), [f"s{place}" for place in range(200)]) | LABEL),
}


def joined(found: Sequence[Piece]) -> tuple[torch.Tensor, NDArray[np.int64], pa.Table]:
    signal = torch.cat([piece.beats.signal for piece in found])
    return signal, np.concatenate([piece.row for piece in found]), pa.concat_tables([piece.origin for piece in found])


@pytest.mark.parametrize("ending", ["csv", "parq"])
@pytest.mark.parametrize("case", TABLES)
def test_pieces_are_the_whole(case: str, ending: str, tmp_path: Path) -> None:
    at, columns = TABLES[case]
    path = tmp_path / f"a.{ending}"
    write(path, columns())
    kind, place = "csv" if ending == "csv" else "parquet", Path(f"{path}{at}")
    whole, origin = read_own(kind, place)
    file = BeatFile(kind, place)
    found = list(file)
    assert len(found) > 1
    signal, row, about = joined(found)
    assert torch.equal(signal, whole.signal)
    assert torch.equal(torch.cat([piece.beats.valid_length for piece in found]), whole.valid_length)
    assert file.num_rows == NUM_ROWS == len(row) + sum(whole.dropped.values())
    assert set(file.remarks) == set(whole.notes)
    assert ("target" in about.column_names) == (whole.target is not None)
    assert {name: about[name].to_pylist() for name in origin.column_names} == origin.to_pydict()
    if whole.target is not None:
        labels = [whole.classes[label] for label in whole.labels.tolist()]
        assert [str(text).removesuffix(".0") for text in about["target"].to_pylist()] == labels
    assert joined(list(file))[0].equal(signal)  # read again, the same
    assert set(file.remarks) == set(whole.notes)


def test_rows_are_those_of_the_file(tmp_path: Path) -> None:
    write(tmp_path / "a.parq", columns_of(some_silent(beats())))
    _, row, _ = joined(list(BeatFile("parquet", tmp_path / "a.parq")))
    assert row.tolist() == [row for row in range(NUM_ROWS) if row not in (0, 13, 40)]


def test_a_headless_csv_is_read_as_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    np.savetxt(path, np.c_[beats(), np.arange(NUM_ROWS) % 5], delimiter=",", fmt="%.6f")
    signal, _, about = joined(list(BeatFile("csv", path)))
    assert torch.equal(signal, read_own("csv", path).beats.signal)
    assert float(about["target"][7].as_py()) == 2


def own(path: Path, num_beats: int) -> Beats:
    made = replace(synthetic_arrhythmia(num_beats, 0), dropped={"too short": 2}, remarks=("said",))
    origin = pa.table({"record": pa.array(["100"] * num_beats), "sample": pa.array(range(num_beats), pa.int64())})
    with Writer(path) as writer:
        writer.append(Recorded(made, origin))
    return made


def test_a_file_of_our_own_is_verified_group_by_group(tmp_path: Path) -> None:
    path, num_beats = tmp_path / "a.parq", BEATS_A_GROUP + 100
    made = own(path, num_beats)
    file = BeatFile("parquet", path)
    found = list(file)
    signal, row, about = joined(found)
    assert len(found) == 2 and torch.equal(signal, made.signal)
    assert about.column_names == ["record", "sample", "target"] and row.tolist() == list(range(num_beats))
    assert about["target"].to_pylist() == [made.classes[label] for label in made.labels.tolist()]
    assert all(piece.beats.intervals is not None for piece in found) and file.remarks == ()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged|not a whole Parquet file"):
        list(BeatFile("parquet", path))


def broken(name: str, row: int, value: float) -> dict[str, Any]:
    signal = beats()
    signal[:, 1] = 0.5
    signal[row, int(name)] = value
    return columns_of(signal)


WIDTH = "a.{0} has beats of 100 samples, not 187: say at which rate they are sampled, as {1}:"
REFUSALS: dict[str, tuple[Callable[[], dict[str, Any]], str, str]] = {
    "a value is missing": (lambda: broken("1", 33, np.nan), "", "row 33, column 1: a value is missing before"),
    "beyond": (lambda: broken("0", 49, 1e39), "", "row 49, column 0: signal"),
    "another length": (lambda: columns_of(beats(100), NAMES[:100]), "", WIDTH),
    "silent": (lambda: columns_of(0 * beats()), "", f"has {NUM_ROWS} rows {SILENT} and no other"),
    "an impossible rate": (lambda: columns_of(beats()), "@0.5", "sampling rate 0.5 Hz is not within"),
    "a first column that counts no further": (
        lambda: {"Unnamed: 0": [*range(NUM_ROWS - 1), 3]} | columns_of(beats()) | LABEL,
        "",
        "a column has no name and does not count the rows",
    ),
    "words": (
        lambda: columns_of(beats()) | {"label": [*["a"] * 30, "b\x07", *["a"] * (NUM_ROWS - 31)]},
        "",
        "row 30, column label: not one line of text",
    ),
}


@pytest.mark.parametrize("ending", ["csv", "parq"])
@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_read_is_refused_in_one_line(case: str, ending: str, tmp_path: Path) -> None:
    columns, at, said = REFUSALS[case]
    kind = "csv" if ending == "csv" else "parquet"
    with np.errstate(over="ignore"):
        write(tmp_path / f"a.{ending}", columns())
    with pytest.raises(ValueError) as caught:
        list(BeatFile(kind, Path(f"{tmp_path / f'a.{ending}'}{at}")))
    assert said.format(ending, kind) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_of_our_own_knows_its_rate(tmp_path: Path) -> None:
    own(tmp_path / "a.parq", 60)
    with pytest.raises(ValueError, match="leave out @"):
        BeatFile("parquet", Path(f"{tmp_path / 'a.parq'}@360"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.csv does not exist"):
        BeatFile("csv", tmp_path / "a.csv")
