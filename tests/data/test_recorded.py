"""Splits of beats whose records are known, from imitated records and from the files that are built of them."""

from collections.abc import Collection
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import data
from data.beats import Beats
from data.imitate import write_records
from data.physionet import DATABASES, build, read_database
from data.recorded import DS1, DS2, DS_CLASSES, PACED, PROTOCOLS, Recorded, group_codes, parts
from data.split import Split
from data.store import Writer, read_recorded

TENSORS = ("signal", "target", "valid_length", "group", "intervals")


@pytest.fixture(scope="module")
def raw_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of all three databases."""
    root = tmp_path_factory.mktemp("raw")
    write_records("mitdb", root / "mitdb", seconds=40)
    write_records("ptbdb", root / "ptbdb", num_records=24, seconds=6)
    write_records("ptbxl", root / "ptbxl", num_records=68)
    return root


@pytest.fixture(scope="module")
def whole(raw_dir: Path) -> dict[str, Recorded]:
    return {name: read_database(name, raw_dir / name) for name in DATABASES}


@pytest.fixture(scope="module")
def built_dir(raw_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parquet files of the same databases, and no records."""
    root = tmp_path_factory.mktemp("built")
    for name in DATABASES:
        build(name, raw_dir / name, root / f"{name}.parq", lambda *_: None)
    return root


def sides(split: Split) -> tuple[Beats, Beats, Beats]:
    return split.train, split.validation, split.load_test()


def groups(split: Split) -> list[set[int]]:
    return [set(part.group.tolist()) for part in sides(split) if part.group is not None]


def assert_equal(first: Beats, second: Beats) -> None:
    """In everything but the fingerprint, which names the file."""
    for name in TENSORS:
        assert torch.equal(getattr(first, name), getattr(second, name)), name
    for name in ("classes", "rate_hz", "source", "dropped", "remarks"):
        assert getattr(first, name) == getattr(second, name), name


def test_ds1_ds2_is_exactly_as_published(raw_dir: Path) -> None:
    split = data.load_split("mitdb", "ds1-ds2", raw_dir)
    train, validation, test = groups(split)
    assert train | validation == set(DS1) and not train & validation
    assert test == set(DS2) and not (train | validation | test) & set(PACED)
    assert (split.protocol, split.badge) == ("ds1-ds2", "record-disjoint")
    for part in sides(split):
        assert part.classes == DS_CLASSES
    assert min(split.load_test().counts().values()) > 0


def test_ds1_ds2_says_what_it_leaves_out(raw_dir: Path, whole: dict[str, Recorded]) -> None:
    found = data.parts("mitdb", "ds1-ds2", raw_dir)
    record = np.array(whole["mitdb"].origin["record"].to_pylist()).astype(int)
    for part, records in ((found.load_train(), DS1), (found.load_test(), DS2)):
        counts = whole["mitdb"].beats.select(torch.from_numpy(np.isin(record, records))).counts()
        num_other = counts.pop("Q")
        assert part.counts() == counts
        assert part.dropped.get("of class Q, which this protocol leaves out", 0) == num_other


@pytest.mark.parametrize("name", DATABASES)
def test_no_patient_is_on_two_sides(name: str, built_dir: Path) -> None:
    splits = [data.load_split(name, "patient", built_dir, seed) for seed in (0, 1)]
    for split in splits:
        found = groups(split)
        assert len(found) == 3 and all(found)
        assert len(set.union(*found)) == sum(map(len, found))
        assert (split.protocol, split.badge) == ("patient", "patient-disjoint")
    assert splits[0].load_test().fingerprint == splits[1].load_test().fingerprint
    assert splits[0].validation.fingerprint != splits[1].validation.fingerprint


def test_both_records_of_a_patient_are_on_one_side(raw_dir: Path) -> None:
    found = set.union(*groups(data.load_split("mitdb", "patient", raw_dir)))
    assert found == {*DS1, *DS2, *PACED} - {202}


@pytest.mark.parametrize("name", DATABASES)
def test_beat_random_mixes_patients_and_covers_everything(
    name: str, built_dir: Path, whole: dict[str, Recorded]
) -> None:
    split = data.load_split(name, "beat-random", built_dir)
    found = sides(split)
    total = len(whole[name].beats)
    assert sum(map(len, found)) == total
    assert abs(len(found[2]) / total - 0.2) < 0.01
    assert groups(split)[0] & groups(split)[2]
    assert split.badge == "beat-random"


def test_folds_are_ptbxls_own(built_dir: Path, whole: dict[str, Recorded]) -> None:
    split = data.load_split("ptbxl", "folds", built_dir)
    beats, origin = whole["ptbxl"]
    fold = origin["fold"].to_numpy()
    for part, wanted in zip(sides(split), (fold < 9, fold == 9, fold == 10), strict=True):
        assert torch.equal(part.signal, beats.signal[torch.from_numpy(wanted)])
        assert min(part.counts().values()) > 0
    found = groups(split)
    assert len(set.union(*found)) == sum(map(len, found))
    assert split.badge == "patient-disjoint"


@pytest.mark.parametrize("name", DATABASES)
def test_a_built_file_holds_what_was_read(name: str, built_dir: Path, whole: dict[str, Recorded]) -> None:
    given, found = whole[name], read_recorded(built_dir / f"{name}.parq")
    assert_equal(given.beats, found.beats)
    assert found.origin.equals(given.origin.combine_chunks())


def test_building_tells_how_far_it_is(raw_dir: Path, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    build("ptbdb", raw_dir / "ptbdb", tmp_path / "ptbdb.parq", lambda *step: steps.append(step))
    assert steps == [(number, len(steps)) for number in range(1, len(steps) + 1)] != []


def test_named_records_of_a_built_file(raw_dir: Path, built_dir: Path) -> None:
    records, path = {"100", "117", "234"}, built_dir / "mitdb.parq"
    given, found = read_database("mitdb", raw_dir / "mitdb", records), read_recorded(path, records)
    for name in TENSORS:
        assert torch.equal(getattr(given.beats, name), getattr(found.beats, name))
    assert found.origin.combine_chunks().equals(given.origin.combine_chunks())
    with pytest.raises(ValueError, match="no beats of the records"):
        read_recorded(path, {"99"})


def test_named_records_of_many_row_groups(
    tmp_path: Path, whole: dict[str, Recorded], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data.store.BEATS_A_GROUP", 100)
    beats, origin = whole["mitdb"]
    path = tmp_path / "mitdb.parq"
    with Writer(path) as writer:
        writer.append(whole["mitdb"])
    assert pq.read_metadata(path).num_row_groups == -(-len(beats) // 100)
    found = read_recorded(path, {"101", "222"})
    here = np.isin(origin["record"].to_pylist(), ["101", "222"])
    assert torch.equal(found.beats.signal, beats.signal[torch.from_numpy(here)])
    assert found.origin["sample"].to_pylist() == origin.filter(pa.array(here))["sample"].to_pylist()


@pytest.mark.parametrize(
    ("name", "protocol"), [("mitdb", "ds1-ds2"), ("mitdb", "patient"), ("ptbdb", "patient"), ("ptbxl", "folds")]
)
def test_splits_of_a_built_file_are_those_of_the_folder(
    name: str, protocol: str, raw_dir: Path, built_dir: Path
) -> None:
    raw, built = (data.load_split(name, protocol, folder) for folder in (raw_dir, built_dir))
    assert raw.badge == built.badge
    for one, other in zip(sides(raw), sides(built), strict=True):
        assert torch.equal(one.signal, other.signal) and torch.equal(one.labels, other.labels)
        assert one.group is not None and other.group is not None and torch.equal(one.group, other.group)


def recorded(**origin: Collection[str | None]) -> Recorded:
    """Beats of nowhere with the given columns, of classes A B."""
    table = pa.table({name: pa.array(column) for name, column in origin.items()})
    beats = Beats(
        signal=torch.rand(len(table), 1, 187),
        target=torch.arange(len(table)) % 2,
        valid_length=torch.full((len(table),), 187),
        classes=("A", "B"),
        rate_hz=125.0,
        source="nowhere",
        fingerprint="f",
        group=group_codes(table["patient"]) if "patient" in origin else None,
    )
    return Recorded(beats, table)


NAMELESS = recorded(record=["a", "a", "b", "b", "c", "c"])
REFUSALS: dict[str, tuple[Recorded, str, str]] = {
    "no patients": (NAMELESS, "patient", "what does not name its patients: protocol patient cannot hold them apart"),
    "a beat without": (recorded(patient=["p", "q", None, "r"]), "patient", "what does not name its patients"),
    "no folds": (NAMELESS, "folds", "what has no column fold"),
    "no such records": (NAMELESS, "ds1-ds2", "what lacks records 101 106 108 109 112 of protocol ds1-ds2"),
    "one missing": (recorded(record=[str(one) for one in DS1[1:]]), "ds1-ds2", "what lacks records 101 of protocol"),
    "other classes": (recorded(record=[str(one) for one in DS1]), "ds1-ds2", "nowhere has classes A B, not N"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_protocol_that_needs_more_refuses_in_one_line(case: str) -> None:
    found, protocol, said = REFUSALS[case]
    split = parts(lambda _: found, protocol, "what", lambda: None)
    with pytest.raises(ValueError, match=said) as caught:
        split.load_train()
    assert "\n" not in str(caught.value)


def test_a_flat_ptbdb_cannot_hold_patients_apart(raw_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "ptbdb").mkdir()
    for path in (raw_dir / "ptbdb").glob("patient*/*"):
        (tmp_path / "ptbdb" / path.name).symlink_to(path)
    with pytest.raises(ValueError, match=r"ptbdb does not name its patients: protocol patient cannot") as caught:
        data.load_split("ptbdb", "patient", tmp_path)
    assert "\n" not in str(caught.value)
    split = data.load_split("ptbdb", "beat-random", tmp_path)
    assert split.badge == "unknown" and split.train.group is None


def test_nothing_is_read_before_it_is_asked_for() -> None:
    def read(_: object) -> Recorded:
        raise AssertionError

    for protocol in PROTOCOLS:
        parts(read, protocol, "what", lambda: None).check()


def test_missing_records_are_noticed_before_anything_is_read(raw_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mitdb"
    folder.mkdir()
    for path in (raw_dir / "mitdb").iterdir():
        if path.name != "234.atr":  # of DS2, the test part
            (folder / path.name).symlink_to(path)
    with pytest.raises(ValueError, match=r"lacks 1 of 48 records \(234;"):
        data.load_split("mitdb", "ds1-ds2", tmp_path)


@pytest.mark.parametrize(
    ("names", "codes"),
    [
        (["7", "100", "7"], [7, 100, 7]),
        (["b", "a", "b"], [1, 0, 1]),
        (["7", "a", "7"], [0, 1, 0]),
        (["7", None, "7"], None),
        ([], []),
    ],
)
def test_groups_are_numbered_by_name(names: list[str | None], codes: list[int] | None) -> None:
    found = group_codes(pa.chunked_array([pa.array(names, pa.string())]))
    assert (None if found is None else found.tolist()) == codes
