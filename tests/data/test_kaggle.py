from pathlib import Path

import numpy as np
import pytest
import torch

from data import PARTS, load, load_split, parts
from data.known import KAGGLE_FILES

ROWS = {"ptbdb_normal.csv": 10, "ptbdb_abnormal.csv": 20, "mitbih_train.csv": 50, "mitbih_test.csv": 15}
NUM_CLASSES = {"ptbdb_normal.csv": [0], "ptbdb_abnormal.csv": [1]}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The four files as Kaggle has them, but short."""
    monkeypatch.setattr("data.published.KAGGLE_ROWS", ROWS)
    for file, num_rows in ROWS.items():
        np.savetxt(tmp_path / file, rows_of(file, num_rows), fmt="%.18e", delimiter=",")
    return tmp_path


def rows_of(file: str, num_rows: int) -> np.ndarray:
    signal = np.random.default_rng(len(file)).random((num_rows, 187), np.float32)
    signal[:, 150:] = 0
    return np.column_stack([signal, np.resize(NUM_CLASSES.get(file, range(5)), num_rows)])


def refused(name: str, part: str, folder: Path) -> str:
    with pytest.raises(ValueError) as caught:
        load(name, part, folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_published_split_of_the_arrhythmia_files(folder: Path) -> None:
    for part, file in zip(PARTS, KAGGLE_FILES["kaggle-arrhythmia"], strict=True):
        beats, expected = load("kaggle-arrhythmia", part, folder), rows_of(file, ROWS[file])
        np.testing.assert_array_equal(beats.signal[:, 0].numpy(), expected[:, :187].astype(np.float32))
        assert beats.labels.tolist() == expected[:, 187].tolist()
        assert (beats.classes, beats.source) == (("N", "S", "V", "F", "Q"), "MIT-BIH Arrhythmia (Kaggle)")
        assert beats.valid_length.max() <= 150
    assert parts("kaggle-arrhythmia", None, folder).badge() == "beat-random"


def test_a_stratified_fifth_of_both_ptb_files_is_the_test_part(folder: Path) -> None:
    train, test = (load("kaggle-ptb", part, folder) for part in PARTS)
    assert (train.counts(), test.counts()) == ({"normal": 8, "MI": 16}, {"normal": 2, "MI": 4})
    assert train.source == "PTB Diagnostic (Kaggle)"
    found = {tuple(row) for beats in (train, test) for row in beats.signal[:, 0].tolist()}
    files = np.concatenate([rows_of(file, ROWS[file])[:, :187] for file in KAGGLE_FILES["kaggle-ptb"]])
    assert found == {tuple(row) for row in files.astype(np.float32).tolist()}
    assert parts("kaggle-ptb", None, folder).badge() == "unknown"
    splits = [load_split("kaggle-ptb", "beat-random", folder, seed) for seed in (0, 1)]
    assert torch.equal(splits[0].load_test().signal, splits[1].load_test().signal)


def test_a_beat_lost_to_a_header_is_missed(folder: Path) -> None:
    path = folder / "mitbih_train.csv"
    path.write_text(path.read_text().partition("\n")[2])
    message = refused("kaggle-arrhythmia", "train", folder)
    assert f"{path} has 49 rows; expected 50: one was taken for a header" in message


@pytest.mark.parametrize(
    ("row", "column", "value", "said"),
    [
        (3, 5, 1.5, "row 3, column 5: signal 1.5 is outside 0…1"),
        (3, 5, np.nan, "row 3, column 5: signal nan is not a finite number"),
        (2, 187, 5, "row 2, column target: label 5 is not one of 0 N, 1 S, 2 V, 3 F, 4 Q"),
    ],
)
def test_what_is_no_beat_is_refused(row: int, column: int, value: float, said: str, folder: Path) -> None:
    rows = rows_of("mitbih_test.csv", 15)
    rows[row, column] = value
    np.savetxt(folder / "mitbih_test.csv", rows, delimiter=",")
    assert said in refused("kaggle-arrhythmia", "test", folder)


def test_a_header_and_a_short_line_are_refused(folder: Path) -> None:
    path = folder / "mitbih_test.csv"
    whole = path.read_text()
    path.write_text(",".join(f"x{place}" for place in range(188)) + "\n" + whole)
    assert "row 0, column 0: invalid value 'x0'" in refused("kaggle-arrhythmia", "test", folder)
    path.write_text(whole[:-30])
    assert "row 14: Expected 188 columns, got 187" in refused("kaggle-arrhythmia", "test", folder)


@pytest.mark.parametrize("name", KAGGLE_FILES)
def test_missing_files_say_how_to_get_them(name: str, folder: Path) -> None:
    last = folder / KAGGLE_FILES[name][-1]
    last.unlink()
    with pytest.raises(ValueError, match=r"is missing: .* needs a Kaggle account.*shayanfazeli/heartbeat"):
        parts(name, None, folder).check()
    last.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match="is a Git LFS pointer"):
        parts(name, None, folder).check()
