import pickle
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import data
from data import published
from data.beats import Beats
from data.split import by_patient, stratified, subset
from data.synthetic import synthetic_arrhythmia

BEATS = synthetic_arrhythmia(3000, seed=5)
NOWHERE = Path("nowhere")

labels = st.lists(st.integers(0, 4), min_size=1, max_size=120).map(torch.tensor)


@settings(deadline=None)
@given(labels, st.floats(0.01, 0.99), st.integers(0, 2**31), st.integers(0, 3))
def test_stratified_covers_everything_with_every_class_on_both_sides(
    target: torch.Tensor, fraction: float, seed: int, minimum: int
) -> None:
    kept, held_out = stratified(target, fraction, seed, minimum)
    assert torch.equal(torch.cat([kept, held_out]).sort().values, torch.arange(len(target)))
    assert torch.equal(kept, kept.sort().values) and torch.equal(held_out, held_out.sort().values)
    for label in target.unique():
        size, out = int((target == label).sum()), int((target[held_out] == label).sum())
        assert out == (0 if size == 1 else min(max(round(size * fraction), minimum), size - 1))


def test_stratified_obeys_its_seed() -> None:
    first, again, other = (stratified(BEATS.labels, 0.1, seed)[1] for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


@settings(deadline=None)
@given(st.data(), labels, st.integers(0, 2**31))
def test_no_patient_is_on_two_sides(draw: st.DataObject, target: torch.Tensor, seed: int) -> None:
    group = torch.tensor(draw.draw(st.lists(st.integers(0, 9), min_size=len(target), max_size=len(target))))
    beats = replace(BEATS.select(torch.arange(len(target))), target=target, group=group)
    if len(group.unique()) < 2:
        with pytest.raises(ValueError, match="two patients"):
            by_patient(beats, 0.2, seed)
        return
    kept, held_out = by_patient(beats, 0.2, seed)
    assert torch.equal(torch.cat([kept, held_out]).sort().values, torch.arange(len(target)))
    assert len(kept) and len(held_out)
    assert not set(group[kept].tolist()) & set(group[held_out].tolist())


def test_patients_are_drawn_near_the_fraction_of_every_class() -> None:
    _, held_out = by_patient(BEATS, 0.2, seed=0)
    shares = torch.tensor(list(BEATS.select(held_out).counts().values())) / torch.tensor(list(BEATS.counts().values()))
    assert ((shares - 0.2).abs() < 0.08).all()


def test_beats_without_patients_cannot_be_split_by_them() -> None:
    with pytest.raises(ValueError, match="do not name their patients"):
        by_patient(replace(BEATS, group=None), 0.2, 0)


@settings(deadline=None)
@given(st.integers(5, 3000), st.integers(5, 3000), st.integers(0, 2**31))
def test_subsets_are_nested_exact_and_hold_every_class(first: int, second: int, seed: int) -> None:
    small, large = (subset(BEATS, size, seed) for size in sorted((first, second)))
    assert (len(small), len(large)) == tuple(sorted((first, second)))
    assert min(small.counts().values()) >= min(5, len(small) // 5)
    assert {bytes(row) for row in small.signal.numpy()} <= {bytes(row) for row in large.signal.numpy()}


def test_a_large_subset_keeps_the_shares() -> None:
    counts, whole = subset(BEATS, 1000, 0).counts(), BEATS.counts()
    assert all(abs(counts[name] - whole[name] / 3) <= 4 for name in whole)


@pytest.mark.parametrize("num_beats", [4, 3001])
def test_an_impossible_subset_is_refused(num_beats: int) -> None:
    with pytest.raises(ValueError, match=f"subset of {num_beats} beats"):
        subset(BEATS, num_beats, 0)


@pytest.mark.parametrize("fraction", [0.0, 1.0, 1.5])
def test_an_impossible_fraction_is_refused(fraction: float) -> None:
    for split in (lambda: stratified(BEATS.labels, fraction, 0), lambda: by_patient(BEATS, fraction, 0)):
        with pytest.raises(ValueError, match="fraction"):
            split()


@pytest.mark.parametrize("name", ["synthetic-ptb", "synthetic-arrhythmia"])
def test_beat_random(name: str) -> None:
    split = data.load_split(name, "beat-random", NOWHERE, seed=0)
    train, test = data.load(name, "train", NOWHERE), split.load_test()
    assert len(split.train) + len(split.validation) == len(train)
    assert abs(len(split.validation) / len(train) - 0.1) < 0.001
    assert test.fingerprint == data.load(name, "test", NOWHERE).fingerprint
    assert split.train.group is not None and test.group is not None
    assert set(test.group.tolist()) == set(split.train.group.tolist())
    assert (split.protocol, split.badge) == ("beat-random", "beat-random")


def test_patient_protocol_holds_patients_apart_whatever_the_seed() -> None:
    splits = [data.load_split("synthetic-arrhythmia", "patient", NOWHERE, seed) for seed in (0, 1)]
    parts = [(split.train, split.validation, split.load_test()) for split in splits]
    for three in parts:
        groups: list[set[int]] = [set(part.group.tolist()) for part in three if part.group is not None]
        assert len(groups) == 3 and len(set.union(*groups)) == sum(map(len, groups))
    assert parts[0][2].fingerprint == parts[1][2].fingerprint
    assert parts[0][1].fingerprint != parts[1][1].fingerprint
    assert splits[0].badge == "patient-disjoint"


def test_the_test_file_stays_unread(heart_data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = published.read_course

    def spy(path: Path, classes: Sequence[str]) -> Beats:
        read.append(path.name)
        return original(path, classes)

    monkeypatch.setattr(published, "read_course", spy)
    split = data.load_split("ptb", "beat-random", heart_data_dir)
    assert read == ["heart_train.parq"]
    assert len(split.load_test()) == 2911
    assert read == ["heart_train.parq", "heart_test.parq"]
    assert split.badge == "unknown"


def test_a_worker_has_no_way_to_the_test_part() -> None:
    split = data.load_split("synthetic-arrhythmia", "patient", NOWHERE)
    sent = pickle.loads(pickle.dumps(split.without_test()))
    assert torch.equal(sent.train.signal, split.train.signal)
    with pytest.raises(RuntimeError, match="test part stays"):
        sent.load_test()


@pytest.mark.parametrize("name", data.DATASETS)
def test_every_data_set_refuses_what_it_does_not_support(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} supports protocol beat-random.*, not nonsense"):
        data.load_split(name, "nonsense", NOWHERE)
    with pytest.raises(ValueError, match="unknown part validation; choose from train, test"):
        data.load(name, "validation", NOWHERE)


def test_unknown_names_list_the_choices() -> None:
    for call in (lambda: data.load("mnist", "train", NOWHERE), lambda: data.load_split("mnist", "patient", NOWHERE)):
        with pytest.raises(ValueError, match="unknown data set mnist; choose from ptb, arrhythmia, kaggle-ptb"):
            call()


@pytest.mark.parametrize("protocol", ["ds1-ds2", "patient"])
def test_missing_records_say_where_they_belong(protocol: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{tmp_path / 'mitdb'} is missing: the records of mitdb are needed"):
        data.load_split("arrhythmia", protocol, tmp_path)


@pytest.mark.parametrize(("name", "file"), [("ptb", "heart_train.parq"), ("arrhythmia", "heart_big_train.parq")])
def test_a_missing_file_names_the_ways_to_get_it(name: str, file: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"data get {name}.*git lfs pull.*HEART_DATA_DIR or --data-dir") as caught:
        data.load(name, "train", tmp_path)
    assert str(tmp_path / file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_package_is_light() -> None:
    program = (
        "import sys, data; heavy = {'torch', 'numpy', 'polars', 'pyarrow', 'wfdb', 'sklearn'} & set(sys.modules); "
        "assert not heavy, heavy; import data.split, data.physionet; assert 'wfdb' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2], timeout=60)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("ptb", "ptb"), ("csv:some/beats.csv", "beats"), ("parquet:a.parq@360", "a"), ("csv:a@b.csv", "a@b")],
)
def test_a_short_name_is_a_file_name(name: str, expected: str) -> None:
    assert data.short_name(name) == expected


def test_another_seed_validates_on_other_patients_and_tests_on_the_same() -> None:
    splits = [data.load_split("synthetic-arrhythmia", "patient", NOWHERE, seed) for seed in range(6)]
    held_out = {
        tuple(split.validation.group.unique().tolist()) for split in splits if split.validation.group is not None
    }
    assert len(held_out) >= 4
    assert len({tuple(split.load_test().labels.tolist()) for split in splits[:2]}) == 1
