from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import data
from data.beats import Beats
from data.physionet import DS1, DS2, PACED, PATIENT_TEST, RECORDS, cut, local_rr, read_mitdb
from data.split import by_patient

COUNTS = {"N": 90_616, "S": 2_781, "V": 7_236, "F": 803, "Q": 8_043}


@pytest.fixture(scope="module")
def mitdb(heart_data_dir: Path) -> Beats:
    return read_mitdb(heart_data_dir / "mitdb")


def test_the_published_lists_share_nothing_and_cover_the_database() -> None:
    assert (len(DS1), len(DS2), len(PACED), len(set(RECORDS))) == (22, 22, 4, 48)


def test_rr_is_the_median_of_the_window_or_else_of_the_record() -> None:
    start = np.array([0, 100, 200, 400, 1250, 1300, 1370, 2600])
    np.testing.assert_array_equal(local_rr(start), [100, 100, 100, 100, 60, 60, 60, 100])


def test_cutting_scales_pads_and_drops_the_last_beats() -> None:
    time = np.arange(1000.0)
    start = np.arange(0, 1000, 100)
    record = cut(np.sin(time / 7) + time, start, np.arange(10))
    assert record.label.tolist() == list(range(10))
    np.testing.assert_array_equal(record.signal.max(axis=1), 1)
    assert (record.signal[:, 120:] == 0).all()
    assert (record.signal[:9, 119] > 0).all()
    assert (record.signal[9, 100:] == 0).all()
    assert cut(np.sin(time / 7), np.array([0, 100, 961]), np.arange(3)).label.tolist() == [0, 1]


def test_missing_records_are_named(tmp_path: Path) -> None:
    (tmp_path / "100.hea").touch()
    with pytest.raises(ValueError, match=r"lacks 2 of 2 records \(100 101; .*physionet.org") as caught:
        read_mitdb(tmp_path, (100, 101))
    assert "\n" not in str(caught.value)


def test_a_broken_record_is_named(tmp_path: Path) -> None:
    for suffix in (".hea", ".dat", ".atr"):
        (tmp_path / f"100{suffix}").write_text("nonsense")
    with pytest.raises(ValueError, match="100: not a readable WFDB record") as caught:
        read_mitdb(tmp_path, (100,))
    assert "\n" not in str(caught.value)


def test_counts_and_tags(mitdb: Beats) -> None:
    assert mitdb.counts() == COUNTS
    assert mitdb.group is not None and mitdb.intervals is not None
    assert tuple(mitdb.group.unique().tolist()) == RECORDS
    assert int((mitdb.group == 100).sum()) == 2272  # of 2,273: the last has too few samples left
    before = mitdb.intervals[:, 0].exp()
    assert before[mitdb.labels == 2].median() < 0.85 < 0.95 < before[mitdb.labels == 0].median()


def test_records_make_the_beats_of_the_parquet_file(mitdb: Beats, heart_data_dir: Path) -> None:
    test = data.load("arrhythmia", "test", heart_data_dir)
    if "rebuilt" not in test.source:
        pytest.skip("the published file was cut by other software")
    made, given = (set(map(bytes, (beats.signal[:, 0] * 1000).round().short().numpy())) for beats in (mitdb, test))
    assert len(given - made) < 0.15 * len(given)


def test_held_out_patients_are_those_of_the_rule(mitdb: Beats) -> None:
    assert mitdb.group is not None
    patients = mitdb.group.clone()
    patients[patients == 202] = 201
    _, held_out = by_patient(replace(mitdb, group=patients), 0.2, 0)
    assert tuple(patients[held_out].unique().tolist()) == PATIENT_TEST


def test_ds1_ds2(heart_data_dir: Path) -> None:
    split = data.load_split("arrhythmia", "ds1-ds2", heart_data_dir, seed=0)
    test = split.load_test()
    groups = [set(part.group.tolist()) for part in (split.train, split.validation, test) if part.group is not None]
    assert groups[0] | groups[1] == set(DS1) and not groups[0] & groups[1] and groups[2] == set(DS2)
    assert test.counts() == {"N": 44_250, "S": 1_837, "V": 3_221, "F": 388}
    assert min(split.validation.counts().values()) > 0
    assert split.badge == "record-disjoint"


def test_patient(heart_data_dir: Path) -> None:
    split = data.load_split("arrhythmia", "patient", heart_data_dir, seed=3)
    groups = [
        set(part.group.tolist())
        for part in (split.train, split.validation, split.load_test())
        if part.group is not None
    ]
    assert len(set.union(*groups)) == 47 == sum(map(len, groups))
    assert 202 not in set.union(*groups)
    assert split.badge == "patient-disjoint"
