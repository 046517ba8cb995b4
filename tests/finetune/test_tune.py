"""The whole `tune` in real processes: interrupted, continued, and what it leaves behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import models
from experiments.results import RunResult, read
from models.checkpoint import load, restore_classifier, save
from models.encoder import EncoderSpec
from tests.samples import checkpoint_of

ROOT = Path(__file__).parents[2]
NUM_TRIALS, NUM_SEEDS = 3, 2
ELSEWHERE = """
import sys
from pathlib import Path
from experiments import cli, results
cli.RUNS = Path(sys.argv.pop(1))
results.STORE = cli.RUNS / "results.jsonl"
from finetune import study
from finetune.cli import COMMANDS
study.GRACE = study.SEARCH_AT_MOST = 10  # however slow the machine, nothing is cut short
cli.main("finetune", COMMANDS)
"""


class Tune:
    """One study in its own folder; its commands as a user would give them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store = folder, folder / "runs" / "results.jsonl"
        self.encoder, self.out, self.json = folder / "encoder.pt", folder / "tuned.pt", folder / "tune.json"
        torch.manual_seed(0)
        encoder = models.build(EncoderSpec(name="resnet1d", options={"width": 8}))
        save(self.encoder, checkpoint_of(encoder.spec, encoder, source="a source"))

    def start(self, *more: str) -> subprocess.Popen[str]:
        flags = f"--encoder {self.encoder} --out {self.out} --json {self.json} --data synthetic-arrhythmia"
        size = f"--budget 60s --trials {NUM_TRIALS} --seeds {NUM_SEEDS} --epochs 1 --threads 2 --tracking none"
        command = [sys.executable, "-c", ELSEWHERE, self.folder / "runs", "tune", *flags.split(), *size.split(), *more]
        return subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    def results(self, stage: str) -> list[RunResult]:
        return [result for result in read(self.store) if result.config["stage"] == stage]


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Tune, tuple[int, str, str], list[str]]]:
    """A study that got Ctrl-C after its first finished trial: its ending, and the lines it had recorded."""
    tune = Tune(tmp_path_factory.mktemp("tune"))
    process = tune.start()
    while process.poll() is None and not tune.store.exists():
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=120)
    yield tune, (process.returncode, stdout, stderr), tune.store.read_text().splitlines()


@pytest.fixture(scope="module")
def continued(interrupted: tuple[Tune, tuple[int, str, str], list[str]]) -> tuple[Tune, tuple[int, str, str]]:
    tune = interrupted[0]
    process = tune.start("--resume")
    stdout, stderr = process.communicate(timeout=300)
    return tune, (process.returncode, stdout, stderr)


def test_ctrl_c_shows_what_there_is_and_how_to_continue(
    interrupted: tuple[Tune, tuple[int, str, str], list[str]],
) -> None:
    _, (code, stdout, stderr), recorded = interrupted
    assert code == 130, stderr
    assert 1 <= len(recorded) < 2 * NUM_TRIALS
    assert "Search: spending" in stdout and "Transfer against scratch" not in stdout
    assert "Traceback" not in stderr
    assert stderr.splitlines()[-1].startswith("interrupted; to continue: python -m finetune tune --encoder")
    assert stderr.endswith("--resume\n")


def test_continuing_repeats_no_trial(
    interrupted: tuple[Tune, tuple[int, str, str], list[str]], continued: tuple[Tune, tuple[int, str, str]]
) -> None:
    tune, (code, _, stderr) = continued
    assert code == 0, stderr
    assert tune.store.read_text().splitlines()[: len(interrupted[2])] == interrupted[2]
    searched = tune.results("search")
    assert Counter(result.arm for result in searched) == {"transfer": NUM_TRIALS, "scratch": NUM_TRIALS}
    assert len({json.dumps(result.config) for result in searched}) == len(searched)
    assert {result.part for result in searched} == {"validation"}


def test_every_arm_has_the_same_seeds_epochs_and_beats(continued: tuple[Tune, tuple[int, str, str]]) -> None:
    tune, _ = continued
    final = tune.results("final")
    arms = ("random-frozen", "scratch", "transfer")
    expected = {(arm, seed, part) for arm in arms for seed in range(NUM_SEEDS) for part in ("validation", "test")}
    assert Counter((result.arm, result.seed, result.part) for result in final) == Counter(expected)
    assert len({(result.config["epochs"], sum(map(sum, result.confusion)), result.part) for result in final}) == 2
    assert {result.config["schedule"] for result in final if result.arm == "random-frozen"} == {"frozen"}
    assert {result.encoder for result in final if result.arm != "transfer"} == {None}


def test_table_json_and_classifier_agree(continued: tuple[Tune, tuple[int, str, str]]) -> None:
    tune, (_, stdout, _) = continued
    said = json.loads(tune.json.read_text())
    assert [row["arm"] for row in said["rows"]] == ["majority", "random-frozen", "scratch", "transfer"]
    assert (said["ending"], said["file"]) == ("complete", str(tune.out))
    assert {row["badge"] for row in said["rows"]} == {"beat-random"}
    transfer = said["rows"][-1]
    assert (transfer["verdict"], transfer["difference"]["num_pairs"]) == (f"too few pairs ({NUM_SEEDS})", NUM_SEEDS)
    assert f"too few pairs ({NUM_SEEDS})" in stdout and "a source" in stdout
    assert f"{transfer['macro_recall']:.3f}" in stdout
    checkpoint = load(tune.out)
    assert f"({said['chosen']})" in checkpoint.task
    assert restore_classifier(checkpoint, "tuned.pt")(torch.rand(2, 1, 187)).shape == (2, 5)


def test_a_study_of_other_settings_is_not_continued(continued: tuple[Tune, tuple[int, str, str]]) -> None:
    tune, _ = continued
    process = tune.start("--resume", "--trials", "4")
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "is of other settings: trials was 3, is 4" in stderr and stderr.count("\n") == 1
