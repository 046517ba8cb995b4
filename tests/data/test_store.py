from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from data.beats import Beats
from data.recorded import Recorded
from data.store import BEATS_A_GROUP, DESCRIPTION, Writer, read_recorded, seal
from data.synthetic import synthetic_arrhythmia

BEATS = replace(synthetic_arrhythmia(500, 0), dropped={"too short": 2}, remarks=("cropped",))


def recorded(beats: Beats, per_record: int = 100) -> Recorded:
    number = np.arange(len(beats))
    assert beats.group is not None
    origin = pa.table(
        {
            "patient": pa.array([str(patient) for patient in beats.group.tolist()]),
            "record": pa.array([f"r{place // per_record}" for place in number]),
            "sample": pa.array(number * 300),
        }
    )
    return Recorded(beats, origin)


def write(path: Path, *pieces: Recorded) -> Path:
    with Writer(path) as writer:
        for piece in pieces:
            writer.append(piece)
    return path


def assert_same(found: Beats, expected: Beats) -> None:
    for name in ("signal", "target", "valid_length", "group", "intervals"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert (found.classes, found.source, found.rate_hz) == (expected.classes, expected.source, expected.rate_hz)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    whole = recorded(BEATS)
    found = read_recorded(write(tmp_path / "a.parq", whole))
    assert_same(found.beats, BEATS)
    assert found.origin.equals(whole.origin)
    assert (found.beats.dropped, found.beats.remarks) == ({"too short": 2}, ("cropped",))


def test_pieces_become_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.store.BEATS_A_GROUP", 64)
    pieces = [recorded(BEATS.select(torch.arange(first, first + 100))) for first in range(0, 500, 100)]
    path = write(tmp_path / "a.parq", *pieces)
    found = read_recorded(path)
    assert_same(found.beats, BEATS)
    assert found.beats.dropped == {"too short": 10}
    metadata = pq.read_metadata(path)
    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    assert sizes == [64] * 7 + [52]


@pytest.mark.parametrize("names", [["r1"], ["r0", "r4"], ["r9"], []])
def test_some_records(names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.store.BEATS_A_GROUP", 64)
    path = write(tmp_path / "a.parq", recorded(BEATS))
    if not set(names) & {"r0", "r1", "r4"}:
        with pytest.raises(ValueError, match="has no beats of the records that are asked for"):
            read_recorded(path, names)
        return
    found = read_recorded(path, names)
    wanted = torch.tensor([f"r{place // 100}" in names for place in range(500)])
    assert_same(found.beats, BEATS.select(wanted))
    assert set(found.origin["record"].to_pylist()) == set(names)


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parq", recorded(BEATS))
    before = path.read_bytes()
    with pytest.raises(RuntimeError), Writer(path) as writer:
        writer.append(recorded(BEATS))
        raise RuntimeError
    with pytest.raises(ValueError, match="not one beat"):
        write(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_unknown_patients_are_no_groups(tmp_path: Path) -> None:
    beats, origin = recorded(BEATS)
    unknown = origin.set_column(0, "patient", pa.nulls(len(beats), pa.string()))
    assert read_recorded(write(tmp_path / "a.parq", Recorded(beats, unknown))).beats.group is None


def test_another_layout_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"0": [0.5], "target": [0]}), tmp_path / "a.parq")
    with pytest.raises(ValueError, match="not written by `python -m data build`"):
        read_recorded(tmp_path / "a.parq")


def test_a_changed_description_is_seen(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parq", recorded(BEATS))
    table = pq.read_table(path)
    sealed = pq.read_metadata(path).metadata[DESCRIPTION]
    cases = {
        "differs from its SHA-256": sealed.replace(b'"N"', b'"M"'),
        "not the one that its description tells of": seal(
            {"num_beats": 1, "columns": table.column_names, "signal": []}
        ).encode(),
    }
    for said, description in cases.items():
        pq.write_table(table.replace_schema_metadata({DESCRIPTION: description}), path)
        with pytest.raises(ValueError, match=said):
            read_recorded(path)


def test_groups_are_of_the_size_that_streams() -> None:
    assert BEATS_A_GROUP * 187 * 4 < 2**23
