import json
import math
import multiprocessing
import subprocess
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest

from experiments.results import RunResult, append, git_commit, read, versions

RESULT = RunResult(
    arm="transfer",
    encoder="ab12",
    source="PTB-XL",
    dataset="arrhythmia",
    config={"lr_ratio": 0.2, "schedule": "frozen", "epochs": 3, "balanced": True, "note": None},
    seed=0,
    protocol="ds1-ds2",
    badge="record-disjoint",
    part="validation",
    metrics={"macro_recall": 0.75},
    confusion=[[3, 1], [0, 2]],
    classes=["N", "V"],
    cost={"beats": 6.0, "seconds": 0.5, "parameters": 129.0},
    commit=None,
    created="2026-01-02T03:04:05+00:00",
)


def _append_many(path: Path, writer: int) -> None:
    for seed in range(20):
        append(path, replace(RESULT, arm=f"writer {writer}", seed=seed))


def test_round_trip(tmp_path):
    path = tmp_path / "runs" / "results.jsonl"
    results = [RESULT, replace(RESULT, encoder=None, part="test", commit="976952e+dirty")]
    for result in results:
        append(path, result)
    assert read(path) == results
    assert read(tmp_path / "absent.jsonl") == []


def test_an_undefined_metric_is_null_in_the_file(tmp_path):
    path = tmp_path / "results.jsonl"
    append(path, replace(RESULT, metrics={"recall/Q": math.nan}))
    assert json.loads(path.read_text())["metrics"] == {"recall/Q": None}
    assert math.isnan(read(path)[0].metrics["recall/Q"])


def test_an_infinite_number_is_refused_and_writes_nothing(tmp_path):
    path = tmp_path / "results.jsonl"
    with pytest.raises(ValueError, match="JSON"):
        append(path, replace(RESULT, metrics={"loss": math.inf}))
    assert not path.exists()


def test_writers_side_by_side_lose_nothing(tmp_path):
    path = tmp_path / "results.jsonl"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_append_many, args=(path, writer)) for writer in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 4
    found = sorted((result.arm, result.seed) for result in read(path))
    assert found == [(f"writer {writer}", seed) for writer in range(4) for seed in range(20)]


def test_a_torn_last_line_is_skipped_and_then_overwritten(tmp_path, capsys):
    path = tmp_path / "results.jsonl"
    append(path, RESULT)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:100])
    assert read(path) == [RESULT]
    assert "torn last line" in capsys.readouterr().err
    append(path, RESULT)
    assert path.read_bytes() == whole * 2


@pytest.mark.parametrize("broken", ["{", "[]", "{}", "", '{"metrics": 3}'])
def test_a_broken_line_names_file_and_line(tmp_path, broken):
    path = tmp_path / "results.jsonl"
    append(path, RESULT)
    whole = path.read_text()
    path.write_text(f"{whole}{broken}\n{whole}")
    with pytest.raises(ValueError, match=r"results\.jsonl, line 2: not a result"):
        read(path)


def test_unknown_fields_are_named():
    with pytest.raises(ValueError, match="colour"):
        RunResult.from_json({**RESULT.to_json(), "colour": "red"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"part": "training"}, "validation, test"),
        ({"classes": ["N"]}, "1 x 1"),
        ({"confusion": [[1], [2, 3]]}, "2 x 2"),
    ],
)
def test_values_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        RunResult.from_json({**RESULT.to_json(), **change})


def test_git_commit(tmp_path):
    def git(*args: str) -> str:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path), *args]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert git_commit(tmp_path) is None
    git("init")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "--no-verify", "-m", "first")
    git("tag", "v1")
    assert git_commit(tmp_path) == git("rev-parse", "--short", "HEAD")
    (tmp_path / "file").write_text("two")
    assert git_commit(tmp_path) == git("rev-parse", "--short", "HEAD") + "+dirty"
    inner = tmp_path / "copy"
    inner.mkdir()
    assert git_commit(inner) is None


def test_versions():
    found = versions()
    assert found["torch"] == version("torch")
    assert found["python"].startswith("3.")
