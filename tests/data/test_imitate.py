import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from data.imitate import LAYOUTS, write_records
from data.physionet import AAMI, CLASS_OF, RECORDS, build, read_database
from data.recorded import DS2
from data.segment import find_r_peaks
from data.store import read_recorded

SMALL = {"mitdb": 3, "ptbdb": 4, "ptbxl": 5}
TOLERANCE_S = 0.05


class Written(NamedTuple):
    folder: Path
    num_beats: int


@pytest.fixture(scope="module")
def mitdb(tmp_path_factory: pytest.TempPathFactory) -> Written:
    folder = tmp_path_factory.mktemp("imitated") / "mitdb"
    return Written(folder, write_records("mitdb", folder))


def read(stem: Path) -> tuple[Any, Any]:
    """The record, and its annotation where it has one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import wfdb

        has_annotation = stem.with_suffix(".atr").exists()
        return wfdb.rdrecord(str(stem)), wfdb.rdann(str(stem), "atr") if has_annotation else None


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_imitated_beats_do_not_pass_for_real_ones(mitdb: Written, tmp_path: Path) -> None:
    expected = "synthetic, in the layout of MIT-BIH Arrhythmia (records)"
    assert read_database("mitdb", mitdb.folder, ["100"]).beats.source == expected
    build("mitdb", mitdb.folder, tmp_path / "a.parq", lambda done, total: None)  # noqa: ARG005
    assert read_recorded(tmp_path / "a.parq").beats.source == expected


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_seed_decides_every_byte(layout: str, tmp_path: Path) -> None:
    written = [
        write_records(layout, tmp_path / name, num_records=SMALL[layout], seconds=8, seed=seed)
        for name, seed in (("first", 3), ("again", 3), ("other", 4))
    ]
    first, again, other = (contents(tmp_path / name) for name in ("first", "again", "other"))
    assert written[0] == written[1] and first == again
    assert [name for name in first if name.endswith(".dat") and first[name] == other[name]] == []


def test_mitdb_is_laid_out_as_published(mitdb: Written) -> None:
    assert {path.name for path in mitdb.folder.iterdir()} == {
        f"{record}.{suffix}" for record in RECORDS for suffix in ("hea", "dat", "atr")
    }
    leads = {}
    for name in RECORDS:
        record, annotation = read(mitdb.folder / name)
        leads[name] = record.sig_name
        assert (record.fs, record.fmt, record.sig_len) == (360, ["212", "212"], 60 * 360)
        assert np.isfinite(record.p_signal).all()
        assert {"+", "~"} <= set(annotation.symbol) <= {"+", "~", *CLASS_OF}
        assert (np.diff(annotation.sample) > 0).all() and annotation.sample[0] >= 0
        assert annotation.sample[-1] < record.sig_len
    assert leads["114"] == ["V5", "MLII"] and leads["102"] == leads["104"] == ["V5", "V2"]
    assert {name for name in RECORDS if leads[name][0] != "MLII"} == {"102", "104", "114"}
    assert leads["101"] == ["MLII", "V1"]


def test_annotations_are_the_beats_that_were_written(mitdb: Written) -> None:
    symbols = [symbol for name in RECORDS for symbol in read(mitdb.folder / name)[1].symbol if symbol in CLASS_OF]
    assert len(symbols) == mitdb.num_beats
    assert {CLASS_OF[symbol] for symbol in symbols} == {0, 1, 2, 3, 4}
    assert set(symbols) >= set("NLRejAaJSVEF/fQ")


def test_ptbdb_is_laid_out_as_published(tmp_path: Path) -> None:
    write_records("ptbdb", tmp_path, num_records=12, seconds=5)
    stems = sorted(path.with_suffix("") for path in tmp_path.glob("patient*/*.hea"))
    assert [stem.parent.name for stem in stems[:3]] == ["patient001", "patient001", "patient002"]
    assert len(stems) == 12 and len({stem.parent for stem in stems}) == 9
    reasons = set()
    for stem in stems:
        record, _ = read(stem)
        assert (record.fs, record.n_sig, record.sig_len) == (1000, 12, 5000)
        assert record.sig_name == ["i", "ii", "iii", "avr", "avl", "avf", "v1", "v2", "v3", "v4", "v5", "v6"]
        reasons.add(record.comments[-1])
    assert reasons == {
        f"Reason for admission: {reason}"
        for reason in ("Healthy control", "Myocardial infarction", "Bundle branch block")
    }


def test_ptbxl_is_laid_out_as_published(tmp_path: Path) -> None:
    write_records("ptbxl", tmp_path, num_records=5)
    record, _ = read(tmp_path / "records100/00000/00005_lr")
    assert (record.fs, record.sig_len) == (100, 1000)
    assert record.sig_name == ["I", "II", "III", "AVR", "AVL", "AVF", "V1", "V2", "V3", "V4", "V5", "V6"]
    header, first, *_ = (tmp_path / "ptbxl_database.csv").read_text().splitlines()
    assert header == "ecg_id,patient_id,scp_codes,strat_fold,filename_lr,filename_hr"
    files = "records100/00000/00001_lr,records500/00000/00001_hr"
    assert first == f"""1,10001.0,"{{'NORM': 100.0, 'SR': 0.0}}",1,{files}"""
    assert (tmp_path / "scp_statements.csv").read_text().startswith(",diagnostic,diagnostic_class\nNORM,1.0,NORM\n")


def test_leads_are_one_heart(tmp_path: Path) -> None:
    write_records("ptbdb", tmp_path, num_records=1, seconds=8)
    record, _ = read(tmp_path / "patient001/s0001_re")
    lead = dict(zip(record.sig_name, record.p_signal.T, strict=True))
    assert np.corrcoef(lead["ii"] - lead["i"], lead["iii"])[0, 1] > 0.6
    assert np.corrcoef(lead["avr"], lead["ii"])[0, 1] < -0.8


def mean_beat(stem: Path) -> NDArray[np.float64]:
    """Of the normal beats, 0.3 s around the R peak."""
    record, annotation = read(stem)
    normal = np.isin(annotation.symbol, list(AAMI["N"]))
    sample = annotation.sample[normal][1:-1, None] + np.arange(-54, 55)
    return record.p_signal[sample, 0].mean(axis=0)


def test_a_patient_with_two_records_has_one_heart(mitdb: Written) -> None:
    first, second, other = (mean_beat(mitdb.folder / name) for name in ("201", "202", "203"))
    assert np.abs(first - second).max() < 0.1 < 0.2 < np.abs(first - other).max()


def matched(wanted: NDArray[np.int64], found: NDArray[np.int64], tolerance: float) -> int:
    """How many of `wanted` have one of `found` within the tolerance."""
    return int((np.abs(wanted[:, None] - found).min(axis=1) <= tolerance).sum())


def test_the_detector_finds_what_was_annotated(mitdb: Written) -> None:
    """In records without pacing: the detector takes the pacing spike for the beat."""
    hits = np.zeros(4)
    for name in map(str, DS2):
        record, annotation = read(mitdb.folder / name)
        beats = annotation.sample[np.isin(annotation.symbol, list(CLASS_OF))]
        found = find_r_peaks(record.p_signal[:, record.sig_name.index("MLII")], 360)
        tolerance = TOLERANCE_S * 360
        hits += matched(beats, found, tolerance), len(beats), matched(found, beats, tolerance), len(found)
    assert hits[0] / hits[1] > 0.98
    assert hits[2] / hits[3] > 0.98


REFUSALS = {
    "unknown layout": ({"layout": "svdb"}, "unknown layout svdb; choose from mitdb, ptbdb, ptbxl"),
    "too many records": ({"num_records": 49}, "mitdb has 48 records, not 49"),
    "no record": ({"num_records": 0}, "0 records of 60 s"),
    "too short": ({"seconds": 0.5}, "48 records of 0.5 s"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_written_is_refused(case: str, tmp_path: Path) -> None:
    changed, said = REFUSALS[case]
    with pytest.raises(ValueError, match=said):
        write_records(**{"layout": "mitdb", "folder": tmp_path / "new", **changed})


def test_real_files_are_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "100.dat").write_bytes(b"real")
    with pytest.raises(ValueError, match="is not empty"):
        write_records("mitdb", tmp_path)
    assert contents(tmp_path) == {"100.dat": b"real"}
