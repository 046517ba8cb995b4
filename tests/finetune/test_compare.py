"""The whole `compare` in real processes: interrupted, continued, and what it leaves behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import models
from experiments.results import RunResult, read
from models.checkpoint import load, save
from models.encoder import EncoderSpec
from tests.samples import checkpoint_of

ROOT = Path(__file__).parents[2]
NUM_SEEDS = 2
TASKS = ("masked", "contrastive")
FRACTIONS = (0.5, 1.0)
CONTROLS = ("majority", "random-frozen", "scratch")
NUM_RUNS = len(FRACTIONS) * NUM_SEEDS * (2 * len(TASKS) + len(CONTROLS))
ELSEWHERE = """
import sys
from pathlib import Path
from experiments import cli, results
cli.RUNS = Path(sys.argv.pop(1))
results.STORE = cli.RUNS / "results.jsonl"
from finetune.cli import COMMANDS
cli.main("finetune", COMMANDS)
"""

Ending = tuple[int, str, str]


class Compare:
    """One comparison in its own folder: two pretrainings of two seeds each."""

    def __init__(self, folder: Path, beats: Path) -> None:
        self.folder, self.beats, self.store = folder, beats, folder / "runs" / "results.jsonl"
        self.json = folder / "compare.json"
        self.files = [folder / f"{task}{seed}.pt" for task in TASKS for seed in range(2)]
        for number, file in enumerate(self.files):
            torch.manual_seed(number)
            encoder = models.build(EncoderSpec(name="resnet1d", options={"width": 4, "kernel": 3}))
            task, seed = TASKS[number // 2], number % 2
            checkpoint = checkpoint_of(encoder.spec, encoder, source="a source + a target (unlabelled)")
            save(file, replace(checkpoint, task=task, seed=seed, options={"seed": seed}))

    def start(self, *more: str) -> subprocess.Popen[str]:
        shared = f"--data-dir {self.beats} --json {self.json} --threads 2 --device cpu --tracking none"
        size = f"--label-fractions {' '.join(map(str, FRACTIONS))} --seeds {NUM_SEEDS} --epochs 1 --steps 8"
        flags = ["--encoders", *map(str, self.files), *shared.split(), *size.split(), *more]
        command = [sys.executable, "-c", ELSEWHERE, str(self.folder / "runs"), "compare", *flags]
        return subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    def results(self) -> list[RunResult]:
        return read(self.store)


@pytest.fixture(scope="module")
def interrupted(
    tmp_path_factory: pytest.TempPathFactory, small_data_dir: Path
) -> Iterator[tuple[Compare, Ending, list[str]]]:
    """A comparison that got Ctrl-C after its first finished run: its ending, and the lines it had recorded."""
    compare = Compare(tmp_path_factory.mktemp("compare"), small_data_dir)
    process = compare.start()
    while process.poll() is None and not (compare.store.exists() and compare.store.read_text().count("\n") >= 2):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=120)
    yield compare, (process.returncode, stdout, stderr), compare.store.read_text().splitlines()


@pytest.fixture(scope="module")
def continued(interrupted: tuple[Compare, Ending, list[str]]) -> tuple[Compare, Ending]:
    compare = interrupted[0]
    process = compare.start("--resume")
    stdout, stderr = process.communicate(timeout=300)
    return compare, (process.returncode, stdout, stderr)


def test_ctrl_c_shows_what_there_is_and_how_to_continue(interrupted: tuple[Compare, Ending, list[str]]) -> None:
    compare, (code, stdout, stderr), recorded = interrupted
    assert code == 130, stderr
    assert 2 <= len(recorded) < 2 * NUM_RUNS
    assert "Pretrained against scratch on arrhythmia" in stdout and "Test recall by class" in stdout
    assert "Traceback" not in stderr
    assert stderr.splitlines()[-1].startswith("interrupted; to continue: python -m finetune compare --encoders")
    assert stderr.endswith("--resume\n")
    said = json.loads(compare.json.read_text())
    assert said["ending"] in ("interrupted", "complete") and len(said["comparisons"]) == 1


def test_continuing_repeats_no_run(
    interrupted: tuple[Compare, Ending, list[str]], continued: tuple[Compare, Ending]
) -> None:
    compare, (code, _, stderr) = continued
    assert code == 0, stderr
    assert compare.store.read_text().splitlines()[: len(interrupted[2])] == interrupted[2]
    cells = Counter((r.arm, r.encoder, r.seed, r.config["label_fraction"], r.part) for r in compare.results())
    assert len(cells) == 2 * NUM_RUNS and set(cells.values()) == {1}


def test_every_arm_has_the_same_recipe_seeds_and_beats(continued: tuple[Compare, Ending]) -> None:
    results = continued[0].results()
    assert len({result.config["comparison"] for result in results}) == 1
    assert {result.config["label_draw"] == result.seed for result in results} == {True}
    for fraction, beats in zip(FRACTIONS, (180, 359), strict=True):
        here = [result for result in results if result.config["label_fraction"] == fraction]
        assert {result.config["train_beats"] for result in here} == {beats}
        trained = [result for result in here if result.arm != "majority"]
        settings = {(r.config["epochs"], r.config["batch_size"], r.cost["beats"]) for r in trained}
        assert settings == {(2, beats // 4, 2.0 * beats)}
        assert len({(sum(map(sum, result.confusion)), result.part) for result in here}) == 2
    assert {(result.arm, result.config.get("schedule")) for result in results} == {
        ("majority", None),
        ("random-frozen", "frozen"),
        ("scratch", "full"),
        ("transfer", "full"),
    }


def test_results_say_which_pretraining_they_are_of(continued: tuple[Compare, Ending]) -> None:
    compare = continued[0]
    transfer = [result for result in compare.results() if result.arm == "transfer"]
    for file in compare.files:
        checkpoint = load(file)
        mine = [result for result in transfer if result.encoder == checkpoint.weights_hash]
        assert len(mine) == 2 * NUM_SEEDS * len(FRACTIONS)
        assert {(r.config["task"], r.config["pretraining_seed"]) for r in mine} == {(checkpoint.task, checkpoint.seed)}
    assert {result.source for result in transfer} == {"a source + a target (unlabelled)"}
    assert {result.encoder for result in compare.results() if result.arm != "transfer"} == {None}


def test_table_and_json_agree(continued: tuple[Compare, Ending]) -> None:
    compare, (_, stdout, _) = continued
    said = json.loads(compare.json.read_text())
    assert said["ending"] == "complete"
    (said,) = said["comparisons"]
    num_rows = len(CONTROLS) + len(TASKS)
    assert (len(said["rows"]), len(said["checkpoints"])) == (2 * num_rows, 4)
    assert [row["arm"] for row in said["rows"][:num_rows]] == [*CONTROLS, "transfer", "transfer"]
    assert set(said["chosen"]) == set(said["seeds"]) == {str(fraction) for fraction in FRACTIONS}
    assert {Path(file).suffix for file in said["pictures"] if Path(file).stat().st_size > 10_000} == {".png", ".svg"}
    for row in said["rows"]:
        assert f"{row['macro_recall']:.3f}" in stdout and row["badge"] in stdout
        if row["arm"] == "transfer":
            assert (row["num_pretraining_seeds"], row["num_seeds"], row["num_runs"]) == (2, NUM_SEEDS, 2 * NUM_SEEDS)
            assert row["difference"]["low"] <= row["difference"]["mean"] <= row["difference"]["high"]
            assert row["verdict"] == "too few pairs (4)"
    assert "2 × 2" in stdout and "unlabelled" in stdout


def test_seeds_and_recipes_may_join_later(continued: tuple[Compare, Ending]) -> None:
    compare, before = continued[0], len(continued[0].results())
    more = "--resume --seeds 3 --label-fractions 0.5 1@1 --vary schedule=full schedule=frozen"
    process = compare.start(*more.split())
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    num_encoders = 2 * len(TASKS)
    third_seed, frozen = num_encoders * 2 + len(CONTROLS), num_encoders * (NUM_SEEDS + 1)
    assert len(compare.results()) == before + 2 * (third_seed + frozen)
    (said,) = json.loads(compare.json.read_text())["comparisons"]
    assert {(row["label_fraction"], row["num_seeds"]) for row in said["rows"]} == {(0.5, 3), (1.0, 1)}
    assert {row["words"] for row in said["rows"] if row["arm"] == "transfer"} == {"full", "frozen"}
