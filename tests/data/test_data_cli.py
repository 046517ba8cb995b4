import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from data.cli import COMMANDS

ROOT = Path(__file__).parents[2]


def run(*args: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HEART_")}
    command = [sys.executable, "-m", "data", *map(str, args)]
    return subprocess.run(
        command, cwd=ROOT, env=kept | environment, capture_output=True, text=True, timeout=60, check=False
    )


def refused(*args: str | Path, **environment: str) -> str:
    done = run(*args, **environment)
    assert done.returncode == 2
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    return lines[0]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    signal = np.random.default_rng(0).random((6, 187), np.float32)
    frame = pl.DataFrame(signal, schema=[f"x{sample}" for sample in range(187)])
    frame.with_columns(target=pl.Series([0, 0, 1, 1, 0, 4])).write_parquet(tmp_path / "a.parq")
    return tmp_path / "a.parq"


def test_check_counts_a_file(table: Path, tmp_path: Path) -> None:
    done = run("check", table, "--json", tmp_path / "a.json")
    assert (done.returncode, done.stderr) == (0, "")
    (row,) = json.loads((tmp_path / "a.json").read_text())
    assert row["counts"] == {"0": 3, "1": 2, "4": 1}
    assert (row["beats"], row["source"], row["length_s"]["longest"]) == (6, "a.parq", 1.496)
    assert "a.parq" in done.stdout and "3 (50.0%)" in done.stdout


def test_check_refuses_bad_data_in_one_line(table: Path, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    bad = tmp_path / "bad" / "heart_big_test.parq"
    pl.read_parquet(table).with_columns(target=pl.lit(7)).write_parquet(bad)
    assert f"{bad}: row 0, column target: label 7" in refused("check", bad)
    assert "is a folder" in refused("check", tmp_path)
    (tmp_path / "pointer.parq").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "git lfs pull" in refused("check", tmp_path / "pointer.parq")
    assert "mnist is neither a file nor a data set; choose from ptb, arrhythmia, kaggle-ptb" in refused(
        "check", "mnist"
    )
    assert "heart_train.parq is missing" in refused("check", "ptb", "--data-dir", tmp_path)


def test_list_shows_what_is_here_and_what_is_not(table: Path, tmp_path: Path) -> None:
    table.rename(tmp_path / "heart_big_train.parq")
    (tmp_path / "heart_test.parq").touch()
    done = run("list", "--json", tmp_path / "list.json", HEART_DATA_DIR=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    rows = json.loads((tmp_path / "list.json").read_text())
    found = {(row["name"], row["part"]): (row["state"], row["beats"]) for row in rows}
    assert found["arrhythmia", "train"] == ("unrecognised", 6)
    assert found["arrhythmia", "test"] == ("missing", None)
    assert found["ptb", "test"] == ("unreadable: run `python -m data check ptb`", None)
    assert found["synthetic-ptb", "train, test"] == ("needs no files", None)
    assert all(f" {name} " in f" {done.stdout} ".replace("\n", " ") for name in ("ptb", "synthetic-arrhythmia"))


def test_get_offline_is_one_line(tmp_path: Path) -> None:
    message = refused("get", "ptb", "--data-dir", tmp_path, HEART_DOWNLOAD_BASE="http://127.0.0.1:1")
    assert "cannot download http://127.0.0.1:1/heart_train.parq" in message
    assert "git lfs pull" in message


def test_get_refuses_what_it_cannot_get() -> None:
    assert "needs no files; choose from ptb, arrhythmia, mitdb" in refused("get", "synthetic-ptb")
    assert "choose from ptb, arrhythmia" in refused("get", "mnist")
    assert "ptb, arrhythmia" in refused("get")


def test_get_leaves_an_unrecognised_file_alone(table: Path, tmp_path: Path) -> None:
    content = table.read_bytes()
    for name in ("heart_train.parq", "heart_test.parq"):
        (tmp_path / name).write_bytes(content)
    done = run("get", "ptb", "--data-dir", tmp_path, HEART_DOWNLOAD_BASE="http://127.0.0.1:1")
    assert done.returncode == 0 and done.stdout.count("unrecognised; move it away") == 2
    assert (tmp_path / "heart_train.parq").read_bytes() == content


def test_get_leaves_known_files_alone(heart_data_dir: Path) -> None:
    done = run("get", "ptb", HEART_DATA_DIR=str(heart_data_dir), HEART_DOWNLOAD_BASE="http://127.0.0.1:1")
    assert done.returncode == 0
    assert "heart_test.parq is here: PTB Diagnostic" in done.stdout


@pytest.mark.parametrize("args", [(), *((name,) for name in COMMANDS)], ids=" ".join)
def test_help_is_light(args: tuple[str, ...]) -> None:
    program = (
        "import sys\nfrom data.cli import main\ntry:\n    main(sys.argv[1:])\nexcept SystemExit as stop:\n"
        "    assert stop.code == 0\n"
        "assert not {'torch', 'numpy', 'pyarrow', 'rich.progress'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", program, *args, "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert "usage" in done.stdout
