"""Reading records: imitated ones, so that every check runs anywhere, and the real ones where they are."""

import csv
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
import torch

import data
from data.imitate import write_records
from data.physionet import AAMI, DATABASES, RECORDS, SUPERCLASSES, TOO_FEW, list_ptbxl, read_database
from data.recorded import DS1, DS2, PACED, Recorded, parts
from data.segment import TOO_SHORT
from data.split import by_patient

COUNTS = {"N": 90_616, "S": 2_781, "V": 7_236, "F": 803, "Q": 8_043}
SIZES: dict[str, dict[str, Any]] = {
    "mitdb": {},
    "ptbdb": {"num_records": 10, "seconds": 15},
    "ptbxl": {"num_records": 20},
}


class Imitated(NamedTuple):
    folder: Path
    num_beats: int
    """Written."""
    read: Recorded


@pytest.fixture(scope="module")
def imitated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Imitated]:
    root, found = tmp_path_factory.mktemp("imitated"), {}
    for name, size in SIZES.items():
        num_beats = write_records(name, root / name, **size)
        found[name] = Imitated(root / name, num_beats, read_database(name, root / name))
    return found


@pytest.fixture(scope="module")
def mitdb(heart_data_dir: Path) -> Recorded:
    return read_database("mitdb", heart_data_dir / "mitdb")


def counts(column: pa.ChunkedArray) -> Counter[Any]:
    return Counter(column.to_pylist())


def refused(name: str, folder: Path, records: Collection[str] | None = None) -> str:
    with pytest.raises(ValueError) as caught:
        read_database(name, folder, records)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_published_lists_share_nothing_and_cover_the_database() -> None:
    assert (len(DS1), len(DS2), len(PACED), len(set(RECORDS))) == (22, 22, 4, 48)


@pytest.mark.parametrize("name", SIZES)
def test_every_beat_is_read_or_counted_as_dropped(name: str, imitated: dict[str, Imitated]) -> None:
    _, num_beats, (beats, origin) = imitated[name]
    found = len(beats) + sum(beats.dropped.values())
    assert len(beats) == len(origin) > 0
    assert set(beats.dropped) == {TOO_SHORT}
    if name == "mitdb":
        assert found == num_beats
    elif name == "ptbdb":
        assert beats.remarks == () and abs(found - num_beats) <= 0.02 * num_beats


@pytest.mark.parametrize("name", SIZES)
def test_beats_tell_where_they_come_from(name: str, imitated: dict[str, Imitated]) -> None:
    beats, origin = imitated[name].read
    assert beats.group is not None
    record, sample = np.array(origin["record"].to_pylist()), origin["sample"].to_numpy()
    starts = np.r_[0, np.flatnonzero(record[1:] != record[:-1]) + 1]
    assert len(starts) == len(set(record))  # each record's beats are together
    rising = np.diff(sample) > 0
    rising[starts[1:] - 1] = True
    assert rising.all()
    patients = set(zip(origin["patient"].to_pylist(), beats.group.tolist(), strict=True))
    assert len(patients) == len(counts(origin["patient"])) == len(beats.group.unique())
    assert ("fold" in origin.column_names, "symbol" in origin.column_names) == (name == "ptbxl", name == "mitdb")


def test_mitdb(imitated: dict[str, Imitated]) -> None:
    beats, origin = imitated["mitdb"].read
    assert tuple(counts(origin["record"])) == RECORDS
    assert len(counts(origin["patient"])) == 47 and "202" not in counts(origin["patient"])
    symbol, target = origin["symbol"].to_pylist(), beats.labels.tolist()
    assert all(name in AAMI[beats.classes[label]] for name, label in zip(symbol, target, strict=True))
    assert min(beats.counts().values()) > 0
    leads = set(zip(origin["record"].to_pylist(), origin["lead"].to_pylist(), strict=True))
    assert {record for record, lead in leads if lead != "MLII"} == {"102", "104"}


def test_early_beats_are_early(imitated: dict[str, Imitated]) -> None:
    beats, origin = imitated["mitdb"].read
    assert beats.intervals is not None
    before, after = beats.intervals[:, 4].exp(), beats.intervals[:, 5].exp()
    normal, early = beats.labels == 0, (beats.labels == 1) | (beats.labels == 2)
    assert before[early].median() < 0.9 < 0.95 < before[normal].median() < 1.05
    assert after[beats.labels == 2].median() > 1.05
    seconds = origin["rr_before_s"].to_numpy()
    assert seconds.min() > 0.3 and 0.6 < np.median(seconds) < 1


def test_beats_start_at_their_peak(imitated: dict[str, Imitated]) -> None:
    beats = imitated["mitdb"].read.beats
    assert beats.signal[beats.labels == 0, 0, 0].median() > 0.95


def test_ptbdb(imitated: dict[str, Imitated]) -> None:
    beats, origin = imitated["ptbdb"].read
    assert set(counts(origin["lead"])) == {"ii"}
    assert set(counts(origin["patient"])) == {f"patient{number:03d}" for number in range(1, 8)}
    assert len(counts(origin["record"])) == 10
    healthy = np.array(origin["patient"].to_pylist())[beats.labels.numpy() == 0]
    assert set(healthy) == {"patient001", "patient005"}
    assert min(beats.counts().values()) > 20


def test_ptbdb_leaves_other_diagnoses_out(tmp_path: Path) -> None:
    write_records("ptbdb", tmp_path, num_records=11, seconds=5)
    header = tmp_path / "patient001/s0001_re.hea"
    header.write_text(header.read_text().replace("Reason for admission", "Reason"))
    beats, origin = read_database("ptbdb", tmp_path)
    assert len(counts(origin["record"])) == 9
    because = "neither healthy control nor myocardial infarction"
    assert set(beats.remarks) == {
        f"1 records left out: diagnosis {diagnosis}, {because}" for diagnosis in ("Bundle branch block", "none")
    }


def test_a_flat_copy_of_ptbdb_has_no_patients(imitated: dict[str, Imitated], tmp_path: Path) -> None:
    for path in imitated["ptbdb"].folder.glob("patient*/*"):
        shutil.copy(path, tmp_path)
    beats, origin = read_database("ptbdb", tmp_path)
    assert beats.group is None and origin["patient"].null_count == len(beats)
    assert torch.equal(beats.signal, imitated["ptbdb"].read.beats.signal)


def test_ptbxl(imitated: dict[str, Imitated]) -> None:
    folder, _, (beats, origin) = imitated["ptbxl"]
    assert beats.classes == SUPERCLASSES and set(counts(origin["lead"])) == {"II"}
    with (folder / "ptbxl_database.csv").open(newline="") as stream:
        rows = {row["ecg_id"]: row for row in csv.DictReader(stream)}
    columns = ("record", "patient", "fold")
    for record, patient, fold in set(zip(*(origin[name].to_pylist() for name in columns), strict=True)):
        assert rows[record]["patient_id"] == f"{patient}.0" and int(rows[record]["strat_fold"]) == fold
    assert len(counts(origin["record"])) == len(rows)
    assert len(counts(origin["patient"])) == 15 and set(counts(origin["fold"])) == set(range(1, 11))


def test_ptbxl_takes_records_of_one_superclass(tmp_path: Path) -> None:
    codes = {
        "1": "{'NORM': 100.0, 'SR': 0.0}",
        "2": "{'IMI': 50.0, 'ASMI': 0.0}",
        "3": "{'IMI': 100.0, 'LVH': 100.0}",
        "4": "{'SR': 0.0}",
        "5": "{}",
    }
    write_records("ptbxl", tmp_path, num_records=5)
    rows = [f'{ecg},{ecg}.0,"{said}",1,records100/00000/0000{ecg}_lr' for ecg, said in codes.items()]
    table = "\n".join(["ecg_id,patient_id,scp_codes,strat_fold,filename_lr", *rows, ""])
    (tmp_path / "ptbxl_database.csv").write_text(table)
    beats, origin = read_database("ptbxl", tmp_path)
    assert set(counts(origin["record"])) == {"1", "2"}
    assert {name for name, count in beats.counts().items() if count} == {"NORM", "MI"}
    assert set(beats.remarks) == {
        "1 records left out: of several diagnostic superclasses",
        "2 records left out: without a diagnostic statement",
    }


def test_named_records_alone_are_read(imitated: dict[str, Imitated]) -> None:
    folder, _, (beats, origin) = imitated["mitdb"]
    some = read_database("mitdb", folder, {"202", "100"})
    here = np.isin(origin["record"].to_pylist(), ["100", "202"])
    assert torch.equal(some.beats.signal, beats.signal[torch.from_numpy(here)])
    assert some.origin.equals(origin.filter(pa.array(here)).combine_chunks())
    assert "has no beats of mitdb" in refused("mitdb", folder, {"99"})


def write_annotation(folder: Path, samples: list[int], symbols: list[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import wfdb

        wfdb.wrann("100", "atr", np.array(samples), symbol=symbols, write_dir=str(folder))


Damage = Callable[[Path], object]
EMPTIED: dict[str, tuple[Damage, int]] = {
    "rhythm alone": (lambda folder: write_annotation(folder, [18], ["+"]), 0),
    "no annotation at all": (lambda folder: (folder / "100.atr").write_bytes(b"\0\0"), 0),
    "one beat": (lambda folder: write_annotation(folder, [18, 500], ["+", "V"]), 1),
}


@pytest.mark.parametrize("case", EMPTIED)
def test_a_record_without_beats_adds_none(case: str, imitated: dict[str, Imitated], tmp_path: Path) -> None:
    damage, num_dropped = EMPTIED[case]
    folder = shutil.copytree(imitated["mitdb"].folder, tmp_path / "mitdb")
    damage(folder)
    beats, origin = read_database("mitdb", folder, {"100", "101"})
    assert set(counts(origin["record"])) == {"101"}
    assert beats.dropped.get(TOO_FEW, 0) == num_dropped
    assert "has no beats of mitdb" in refused("mitdb", folder, {"100"})


def test_a_silent_record_adds_no_beats(imitated: dict[str, Imitated], tmp_path: Path) -> None:
    folder = shutil.copytree(imitated["ptbdb"].folder, tmp_path / "ptbdb")
    silent = folder / "patient001/s0001_re.dat"
    silent.write_bytes(bytes(silent.stat().st_size))
    assert "s0001_re" not in counts(read_database("ptbdb", folder).origin["record"])


def put_nan(folder: Path) -> None:
    """Format 16 writes a missing sample as −32,768."""
    path = folder / "patient001/s0001_re.dat"
    samples = np.fromfile(path, "<i2").reshape(-1, 12)
    samples[1234, 1] = -32768
    samples.tofile(path)


def put_text(folder: Path, name: str, old: str, new: str) -> None:
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new, 1))


TABLES = "lacks a readable ptbxl_database.csv or scp_statements.csv"
REFUSALS: dict[str, tuple[str, Damage, list[str]]] = {
    "mitdb without samples": (
        "mitdb",
        lambda folder: (folder / "100.dat").unlink(),
        ["lacks 1 of 48 records (100; .hea, .dat, .atr of each)", "physionet.org"],
    ),
    "mitdb without annotations": (
        "mitdb",
        lambda folder: [(folder / f"{record}.atr").unlink() for record in RECORDS[:7]],
        ["lacks 7 of 48 records (100 101 102 103 104 …;"],
    ),
    "unreadable header": (
        "mitdb",
        lambda folder: (folder / "100.hea").write_text("nonsense"),
        ["mitdb/100: not a readable WFDB record"],
    ),
    "empty header": ("mitdb", lambda folder: (folder / "100.hea").write_text(""), ["mitdb/100: not a readable"]),
    "unreadable annotations": (
        "mitdb",
        lambda folder: (folder / "100.atr").write_bytes(b"\1"),
        ["mitdb/100.atr: not readable WFDB annotations"],
    ),
    "samples cut off": (
        "mitdb",
        lambda folder: (folder / "100.dat").write_bytes((folder / "100.dat").read_bytes()[:999]),
        ["mitdb/100: not a readable WFDB record"],
    ),
    "not a number": ("ptbdb", put_nan, ["s0001_re: sample 1234 of its signal is not a number"]),
    "ptbdb without samples": (
        "ptbdb",
        lambda folder: (folder / "patient001/s0001_re.dat").unlink(),
        ["lacks 1 of 10 records (s0001_re; .hea, .dat of each)"],
    ),
    "ptbdb without records": (
        "ptbdb",
        lambda folder: [shutil.rmtree(p) for p in folder.iterdir()],
        ["ptbdb has no records: run"],
    ),
    "ptbxl without samples": (
        "ptbxl",
        lambda folder: (folder / "records100/00000/00001_lr.dat").unlink(),
        ["lacks 1 of 20 records (1; .hea, .dat of each)"],
    ),
    "no statements": ("ptbxl", lambda folder: (folder / "scp_statements.csv").unlink(), [TABLES]),
    "no folds": (
        "ptbxl",
        lambda folder: put_text(folder, "ptbxl_database.csv", "strat_fold", "fold"),
        [TABLES, "strat_fold"],
    ),
    "patient unknown": (
        "ptbxl",
        lambda folder: put_text(folder, "ptbxl_database.csv", "10001.0", "somebody"),
        [TABLES, "somebody"],
    ),
    "row cut off": (
        "ptbxl",
        lambda folder: put_text(folder, "ptbxl_database.csv", "00020_lr,", "00020_lr\n21,10001.0,"),
        [TABLES],
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_read_is_refused_in_one_line(case: str, imitated: dict[str, Imitated], tmp_path: Path) -> None:
    name, damage, said = REFUSALS[case]
    folder = shutil.copytree(imitated[name].folder, tmp_path / name)
    damage(folder)
    refusal = refused(name, folder, {"100"} if name == "mitdb" else None)
    assert [part for part in said if part not in refusal] == []


@pytest.mark.parametrize("name", DATABASES)
def test_a_missing_folder_is_named_with_the_ways_to_get_it(name: str, tmp_path: Path) -> None:
    refusal = refused(name, tmp_path / name)
    assert f"{tmp_path / name} is missing" in refusal and f"data get {name}" in refusal


def test_real_mitdb(mitdb: Recorded) -> None:
    beats, origin = mitdb
    assert beats.counts() == COUNTS
    assert beats.dropped == {TOO_SHORT: 15} and len(beats) + 15 == 109_494
    assert tuple(counts(origin["record"])) == RECORDS
    assert counts(origin["record"])["100"] == 2272  # of 2,273: the last has too few samples left
    assert beats.group is not None and beats.intervals is not None
    assert set(beats.group.tolist()) == set(map(int, RECORDS)) - {202}
    before = beats.intervals[:, 0].exp()
    assert before[beats.labels == 2].median() < 0.85 < 0.95 < before[beats.labels == 0].median()


def test_real_records_make_the_beats_of_the_parquet_file(mitdb: Recorded, heart_data_dir: Path) -> None:
    test = data.load("arrhythmia", "test", heart_data_dir)
    if "rebuilt" not in test.source:
        pytest.skip("the published file was cut by other software")
    made, given = (
        set(map(bytes, (beats.signal[:, 0] * 1000).round().short().numpy())) for beats in (mitdb.beats, test)
    )
    assert len(given - made) < 0.15 * len(given)


def protocol_of(whole: Recorded, protocol: str) -> data.Parts:
    """Parts of what was read already."""

    def read(records: Collection[str] | None) -> Recorded:
        if records is None:
            return whole
        here = np.isin(whole.origin["record"].to_pylist(), list(records))
        return Recorded(whole.beats.select(torch.from_numpy(here)), whole.origin.filter(pa.array(here)))

    return parts(read, protocol, "mitdb", lambda: None)


def test_real_ds1_ds2(mitdb: Recorded) -> None:
    found = protocol_of(mitdb, "ds1-ds2")
    train, test = found.load_train(), found.load_test()
    assert train.group is not None and test.group is not None
    assert set(train.group.tolist()) == set(DS1) and set(test.group.tolist()) == set(DS2)
    assert test.counts() == {"N": 44_250, "S": 1_837, "V": 3_221, "F": 388}
    kept, held_out = by_patient(train, 0.1, 0)
    assert min(train.select(held_out).counts().values()) > 0
    assert not set(train.group[kept].tolist()) & set(train.group[held_out].tolist())
    assert found.badge() == "record-disjoint"


def test_real_patients_are_held_apart(mitdb: Recorded) -> None:
    found = protocol_of(mitdb, "patient")
    train, test = found.load_train(), found.load_test()
    assert train.group is not None and test.group is not None
    sides = [set(part.group.tolist()) for part in (train, test) if part.group is not None]
    assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 47
    shares = {name: count / COUNTS[name] for name, count in test.counts().items()}
    fusion = shares.pop("F")  # nine tenths are of two patients
    assert fusion > 0.02 and all(abs(share - 0.2) < 0.05 for share in shares.values())
    assert found.badge() == "patient-disjoint"


def test_real_ptbdb_is_flat_and_all_infarction(heart_data_dir: Path) -> None:
    beats, origin = read_database("ptbdb", heart_data_dir / "ptbdb")
    assert len(counts(origin["record"])) == 6 and set(counts(origin["lead"])) == {"ii"}
    assert beats.counts()["normal"] == 0 and beats.counts()["MI"] > 400
    assert beats.group is None
    assert 0.5 < np.median(origin["rr_before_s"].to_numpy()) < 1.2


def test_real_ptbxl(heart_data_dir: Path) -> None:
    folder = heart_data_dir / "ptbxl"
    listing = list_ptbxl(folder)
    assert len(listing.recordings) == 415 and sum(listing.left_out.values()) == 85
    patients = {recording.record: recording.patient for recording in listing.recordings}
    folds: dict[str | None, set[int | None]] = {}
    for recording in listing.recordings:
        folds.setdefault(recording.patient, set()).add(recording.fold)
    assert 1 < len(folds) < 415 and {len(own) for own in folds.values()} == {1}
    assert {recording.label for recording in listing.recordings} == set(range(5))
    beats, origin = read_database("ptbxl", folder, list(patients)[:40])
    assert len(counts(origin["record"])) == 40 and beats.group is not None
    read = set(zip(origin["record"].to_pylist(), beats.group.tolist(), strict=True))
    assert read == {(record, int(patients[record] or -1)) for record in list(patients)[:40]}
    assert 5 < len(beats) / 40 < 20
