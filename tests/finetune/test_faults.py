"""`tune` in real processes, and what may go wrong around it: kills, failing trials, a full disk, a lost node."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import pytest
import torch

import models
from experiments.results import RunResult, read
from models.checkpoint import save
from models.encoder import EncoderSpec
from tests.conftest import ROOT
from tests.samples import checkpoint_of

PROGRAM = """
import sys
from pathlib import Path
from experiments import cli, results
cli.RUNS = Path(sys.argv.pop(1))
results.STORE = cli.RUNS / "results.jsonl"
from finetune import plan, study
from finetune.cli import COMMANDS
study.GRACE = study.SEARCH_AT_MOST = 1000  # however slow the machine, nothing is cut short
plan.SEARCH_EPOCHS = 2
{patch}
cli.main("finetune", COMMANDS)
"""
TRIALS, SEEDS = 2, 2
ARMS = ("transfer", "scratch")
FLAGS = f"--data arrhythmia --budget 10m --trials {TRIALS} --seeds {SEEDS} --epochs 1 --threads 2 --tracking none"
PATIENCE_S = 300.0
AGENTS = {"ray::DashboardAgent", "ray::RuntimeEnvAgent"}
"""Idle processes that after their head's sudden death may ask for it for another minute."""


class Answer(NamedTuple):
    """Of a command that has ended."""

    code: int
    stdout: str
    stderr: str


@dataclass(frozen=True, kw_only=True)
class Tune:
    """A study in a folder of its own; its commands as a user would give them."""

    folder: Path
    beats: Path
    flags: str = FLAGS
    patch: str = ""
    """What the driver runs before the command."""
    width: int = 4
    mark: str = field(default_factory=lambda: uuid4().hex)
    """In the environment of every process of this study."""

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        encoder = models.build(EncoderSpec(name="resnet1d", options={"width": self.width}))
        save(self.folder / "encoder.pt", checkpoint_of(encoder.spec, encoder, source="a source"))

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    def start(self, *more: str | Path, **environment: str) -> subprocess.Popen[str]:
        files = ["--encoder", self.folder / "encoder.pt", "--data-dir", self.beats]
        made = ["--out", self.folder / "tuned.pt", "--json", self.folder / "tune.json"]
        command = [sys.executable, "-c", PROGRAM.format(patch=self.patch), self.runs, "tune", *self.flags.split()]
        kept = {key: value for key, value in os.environ.items() if not key.startswith("HEART_")}
        return subprocess.Popen(
            [*map(str, [*command, *files, *made, *more])],
            cwd=ROOT,
            env={**kept, "HEART_FAULTS": self.mark, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *more: str | Path, **environment: str) -> Answer:
        return answer_of(self.start(*more, **environment))

    def results(self, stage: str) -> list[RunResult]:
        return [result for result in read(self.runs / "results.jsonl") if result.config["stage"] == stage]

    def lines(self) -> list[str]:
        return (self.runs / "results.jsonl").read_text().splitlines()

    def workers(self, title: str) -> list[int]:
        """Of Ray, by what they are at."""
        return [number for number, found in self.processes().items() if found == title]

    def processes(self) -> dict[int, str]:
        """Of this study: number → title."""
        found = {}
        for process in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if process.name.isdecimal() and self.mark in (process / "environ").read_text():
                    found[int(process.name)] = (process / "cmdline").read_text().replace("\0", " ").strip()
        return found


def answer_of(process: subprocess.Popen[str]) -> Answer:
    stdout, stderr = process.communicate(timeout=PATIENCE_S)
    return Answer(process.returncode, stdout, stderr)


def wait_for(what: Callable[[], Any], process: subprocess.Popen[str] | None = None, seconds: float = PATIENCE_S) -> Any:
    """Until it is true; the process must not end before."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if found := what():
            return found
        if process is not None and process.poll() is not None:
            pytest.fail(f"ended too early: {answer_of(process)}")
        time.sleep(0.05)
    if process is not None:
        process.kill()
    pytest.fail("waited in vain")


def kill(tune: Tune, driver: subprocess.Popen[str]) -> None:
    """As `kill -9` does; what it has started dies with it, a worker that is just being started too."""
    driver.kill()
    driver.wait()
    wait_for(lambda: AGENTS.issuperset(tune.processes().values()), seconds=60)
    driver.communicate()


def drop_last_line(tune: Tune) -> None:
    lines = tune.lines()
    (tune.runs / "results.jsonl").write_text("\n".join([*lines[:-1], ""]))


def assert_complete(tune: Tune, answer: Answer, trials: int = TRIALS, seeds: int = SEEDS) -> None:
    """All trials and runs, each once."""
    assert (answer.code, answer.stderr) == (0, ""), answer.stderr
    searched = tune.results("search")
    assert Counter(result.arm for result in searched) == {"transfer": trials, "scratch": trials}
    assert len({json.dumps(result.config) for result in searched}) == len(searched)
    arms, parts = ("random-frozen", "scratch", "transfer"), ("validation", "test")
    expected = {(arm, seed, part): 1 for arm in arms for seed in range(seeds) for part in parts}
    assert Counter((result.arm, result.seed, result.part) for result in tune.results("final")) == expected
    assert json.loads((tune.folder / "tune.json").read_text())["ending"] == "complete"


@dataclass(frozen=True, kw_only=True)
class Killed:
    """A study killed in its search, interrupted and then killed in its comparison, and continued each time."""

    tune: Tune
    recorded: list[list[str]]
    """Lines of the store after each."""
    interrupted: Answer
    continued: Answer


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, small_data_dir: Path) -> Iterator[Killed]:
    folder = tmp_path_factory.mktemp("killed")
    tune = Tune(folder=folder, beats=small_data_dir)
    more, recorded = ("--tracking", folder / "mlflow.db", "--epochs", "8"), []
    searching = tune.start(*more)
    wait_for(lambda: (tune.runs / "results.jsonl").exists(), searching)
    kill(tune, searching)
    recorded.append(tune.lines())
    interrupted = tune.start(*more, "--resume")
    wait_for(lambda: tune.results("final"), interrupted)
    interrupted.send_signal(signal.SIGINT)
    answer = answer_of(interrupted)
    recorded.append(tune.lines())
    comparing = tune.start(*more, "--resume")
    wait_for(lambda: len(tune.lines()) > len(recorded[-1]), comparing)
    kill(tune, comparing)
    if tune.results("final")[-1].part == "test":
        drop_last_line(tune)  # as if the kill had come between the two results of a run
    recorded.append(tune.lines())
    yield Killed(tune=tune, recorded=recorded, interrupted=answer, continued=tune.run(*more, "--resume"))


def test_a_killed_tune_is_continued_and_repeats_nothing(killed: Killed) -> None:
    assert_complete(killed.tune, killed.continued)
    lines = killed.tune.lines()
    assert [len(recorded) for recorded in killed.recorded] == sorted({len(recorded) for recorded in killed.recorded})
    assert len(killed.recorded[0]) < 2 * TRIALS < len(killed.recorded[1]) and len(killed.recorded[2]) < len(lines)
    assert all(lines[: len(recorded)] == recorded for recorded in killed.recorded)


def test_ctrl_c_in_the_comparison_shows_what_there_is_and_how_to_continue(killed: Killed) -> None:
    code, stdout, stderr = killed.interrupted
    assert code == 130, stderr
    assert "Search: spending" in stdout and "Comparison: spending" in stdout
    assert "Transfer against scratch" in stdout
    assert stderr.startswith("interrupted; to continue: python -m finetune tune --data arrhythmia")
    assert stderr.endswith(" --resume\n") and stderr.count("\n") == 1


def test_a_killed_tune_has_one_tracked_run_for_each_result(killed: Killed) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{killed.tune.folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("finetune")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    (parent,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    children = [run for run in runs if run is not parent]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    tracked = Counter((run.data.tags["arm"], run.data.metrics["macro_recall"]) for run in children)
    results = [*killed.tune.results("search"), *killed.tune.results("final")]
    assert tracked == Counter((result.arm, result.metrics["macro_recall"]) for result in results)


EPOCHS = 12
SAYS_EPOCHS = f"""
plan.SEARCH_EPOCHS = {EPOCHS}
from finetune import tune
def say(self, iteration, trials, trial, result, **info):
    print("epoch", trial.trial_id, result["training_iteration"], flush=True)
tune.Recorder.on_trial_result = say
"""


@pytest.fixture(scope="module")
def bereaved(tmp_path_factory: pytest.TempPathFactory, small_data_dir: Path) -> tuple[Tune, Answer]:
    """A study that lost a worker in the middle of a trial, and one in the middle of a compared run."""
    tune = Tune(folder=tmp_path_factory.mktemp("bereaved"), beats=small_data_dir, patch=SAYS_EPOCHS)
    process = tune.start("--scheduler", "fifo", "--epochs", "20", "--seeds", "1")
    wait_for(lambda: list(tune.runs.glob("tune_*/ray/transfer/*/checkpoint_00000[3-9]")), process)
    os.kill(tune.workers("ray::ImplicitFunc.train")[0], signal.SIGKILL)
    os.kill(wait_for(lambda: tune.workers("ray::_final"), process)[0], signal.SIGKILL)
    return tune, answer_of(process)


def test_killed_workers_are_replaced_and_a_trial_goes_on_from_its_last_epoch(bereaved: tuple[Tune, Answer]) -> None:
    tune, answer = bereaved
    assert_complete(tune, answer, seeds=1)
    assert {result.cost["epochs"] for result in tune.results("search")} == {EPOCHS}
    assert len({result.cost["beats"] for result in tune.results("search")}) == 1
    said = [line.split() for line in answer.stdout.splitlines() if line.startswith("epoch ")]
    of_trial = {trial: [int(epoch) for _, name, epoch in said if name == trial] for _, trial, _ in said}
    assert all(epochs.count(1) == 1 and epochs == sorted(epochs) for epochs in of_trial.values()), of_trial


MOST_FAIL = """
[weight_decay]
choices = [0.05, 1e12]
[head]
choices = ["linear", "mlp"]
"""
GREEDY = """
from dataclasses import replace
from experiments import cluster
from finetune import tune
of, trial = cluster.Workers.of, tune._trial
cluster.Workers.of = lambda *given: replace(of(*given), bytes_each=2**30)

def greedy(config, **given):
    import torch
    from finetune.trainee import FineTuning
    modest = FineTuning.batches
    def batches(self, epoch):
        kept = torch.ones(2**30) if self.recipe.head == "mlp" else None
        return modest(self, epoch)
    FineTuning.batches = batches
    try:
        trial(config, **given)
    finally:
        FineTuning.batches = modest

tune._trial = greedy
"""
"""A head of several layers takes four gigabytes; there is one for each trial."""
GRID = 4


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory, small_data_dir: Path) -> tuple[Tune, Answer]:
    """A search in which weights explode or memory is short in three of four trials, interrupted and continued."""
    folder = tmp_path_factory.mktemp("failing")
    (folder / "most.toml").write_text(MOST_FAIL)
    tune = Tune(folder=folder, beats=small_data_dir, patch=GREEDY)
    more = ("--space", folder / "most.toml", "--searcher", "grid", "--scheduler", "fifo", "--trials", str(GRID))
    more = (*more, "--fixed", "batch_size=32", "--seeds", "1")
    process = tune.start(*more)
    wait_for(lambda: len(list(tune.runs.glob("*/failed.jsonl"))), process)
    process.send_signal(signal.SIGINT)
    assert answer_of(process).code == 130
    return tune, tune.run(*more, "--resume")


def test_a_trial_that_fails_fails_alone_and_is_not_tried_again(failing: tuple[Tune, Answer]) -> None:
    tune, answer = failing
    assert_complete(tune, answer, trials=1, seeds=1)
    (file,) = tune.runs.glob("*/failed.jsonl")
    failed = [json.loads(line) for line in file.read_text().splitlines()]
    tried = [(one["arm"], one["config"]["weight_decay"], one["config"]["head"]) for one in failed]
    expected = ((1e12, "linear"), (0.05, "mlp"), (1e12, "mlp"))
    assert Counter(tried) == {(arm, *one): 1 for arm in ARMS for one in expected}
    for one in failed:
        assert ("can't allocate memory" if one["config"]["head"] == "mlp" else "the loss became nan") in one["why"]
    content = json.loads((tune.folder / "tune.json").read_text())
    assert (content["failed"], [row["failed"] for row in content["search_results"]]) == (failed, [3, 3])
    found = {(result.config["weight_decay"], result.config["head"]) for result in tune.results("final")}
    assert found == {(0.05, "linear")}
    assert "failed" in answer.stdout
