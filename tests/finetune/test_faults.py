"""`tune` in real processes, and what may go wrong around it: kills, failing trials, a full disk, a lost node."""

import contextlib
import json
import os
import secrets
import signal
import socket
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
from tests.conftest import ROOT, Done
from tests.samples import checkpoint_of

PROGRAM = """
import sys
from pathlib import Path
from experiments import cli, results
cli.RUNS = Path(sys.argv.pop(1))
results.STORE = cli.RUNS / "results.jsonl"
from finetune import plan, study, tune
from finetune.cli import COMMANDS
study.GRACE = study.SEARCH_AT_MOST = 1000  # however slow the machine, nothing is cut short
plan.SEARCH_EPOCHS, tune.measure_speed = 2, lambda study: 1000.0
{patch}
cli.main("finetune", COMMANDS)
"""
TRIALS, SEEDS = 2, 2
ARMS = ("transfer", "scratch")
FLAGS = (
    f"--data arrhythmia --budget 10m --trials {TRIALS} --seeds {SEEDS} --epochs 1 --threads 2 --tracking none "
    "--fixed balance=none"  # SMOTE refuses so few beats
)
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

    def arguments(self, *more: str | Path) -> list[str]:
        files = ["--encoder", self.folder / "encoder.pt", "--data-dir", self.beats]
        made = ["--out", self.folder / "tuned.pt", "--json", self.folder / "tune.json"]
        return [str(part) for part in ("tune", *self.flags.split(), *files, *made, *more)]

    def start(self, *more: str | Path, **environment: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", PROGRAM.format(patch=self.patch), str(self.runs), *self.arguments(*more)]
        kept = {key: value for key, value in os.environ.items() if not key.startswith("HEART_")}
        return subprocess.Popen(
            command,
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

    def processes(self) -> dict[int, str]:
        """Of this study: number → title."""
        found = {}
        for process in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if process.name.isdecimal() and self.mark.encode() in (process / "environ").read_bytes():
                    title = (process / "cmdline").read_bytes().decode(errors="replace")
                    found[int(process.name)] = title.replace("\0", " ").strip()
        return found

    def workers(self, title: str) -> list[int]:
        """Of Ray, by what they are at."""
        return [number for number, found in self.processes().items() if found == title]

    def trial_workers(self) -> dict[str, int]:
        """By the name of their trial's folder."""
        found = {}
        for number in self.workers("ray::ImplicitFunc.train"):
            with contextlib.suppress(OSError):
                found[Path(f"/proc/{number}/cwd").readlink().name] = number
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


def tracked_runs(tune: Tune) -> tuple[list[Any], list[Any]]:
    """Runs of the studies, and runs below them."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tune.folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("finetune")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    return [run for run in runs if run not in children], children


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
    (parent,), children = tracked_runs(killed.tune)
    assert {run.info.status for run in (parent, *children)} == {"FINISHED"}
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    tracked = Counter((run.data.tags["arm"], run.data.metrics["macro_recall"]) for run in children)
    results = [*killed.tune.results("search"), *killed.tune.results("final")]
    assert tracked == Counter((result.arm, result.metrics["macro_recall"]) for result in results)


REFUSED = {
    "--resume --space small": "study.json is of other settings: space was",
    "--resume --objective macro_f1": "study.json is of other settings: objective was macro_recall, is macro_f1",
    "--resume --scheduler fifo": "study.json is of other settings: scheduler was asha, is fifo",
    "--resume --searcher random": "study.json is of other settings: searcher was tpe, is random",
    "--address localhost:{port} --scheduler hyperband": "--scheduler hyperband hands weights over through a disk",
    "--address localhost:{port} --scheduler pbt --searcher random": "--scheduler pbt hands weights over through a disk",
}


@pytest.fixture(scope="module")
def refused(killed: Killed, run_many: Callable[..., list[Done]]) -> tuple[list[str], dict[str, Done], list[str]]:
    """Lines of the study's files, the answers to flags that do not fit it, and the lines afterwards."""
    tune = killed.tune
    elsewhere = PROGRAM.partition("{patch}")[0].replace("sys.argv.pop(1)", repr(str(tune.runs)))
    more = ("--tracking", tune.folder / "mlflow.db", "--epochs", "8")
    (notes,) = tune.runs.glob("tune_*/study.json")
    before = [*tune.lines(), notes.read_text()]
    with socket.create_server(("localhost", 0)) as listening:
        port = listening.getsockname()[1]
        cases = [tune.arguments(*more, *flags.format(port=port).split()) for flags in REFUSED]
        answers = run_many("finetune", cases, elsewhere)
    return before, dict(zip(REFUSED, answers, strict=True)), [*tune.lines(), notes.read_text()]


@pytest.mark.parametrize("flags", REFUSED)
def test_what_does_not_fit_the_study_is_refused_in_one_line(
    flags: str, refused: tuple[list[str], dict[str, Done], list[str]]
) -> None:
    before, answers, after = refused
    code, _, stderr = answers[flags]
    assert (code, stderr.count("\n")) == (2, 1), stderr
    assert REFUSED[flags] in stderr
    assert before == after


LONG = 20
"""Epochs of a trial that is to be met in the middle."""
SAYS_EPOCHS = f"""
plan.SEARCH_EPOCHS = {LONG}
def say(self, iteration, trials, trial, result, **info):
    print("epoch", trial.trial_id, result["training_iteration"], flush=True)
tune.Recorder.on_trial_result = say
"""


@pytest.fixture(scope="module")
def bereaved(tmp_path_factory: pytest.TempPathFactory, small_data_dir: Path) -> tuple[Tune, Answer]:
    """A study that lost a worker in the middle of a trial, and one in the middle of a compared run."""
    tune = Tune(folder=tmp_path_factory.mktemp("bereaved"), beats=small_data_dir, patch=SAYS_EPOCHS)
    process = tune.start("--scheduler", "fifo", "--epochs", "20", "--seeds", "1")

    def in_the_middle() -> int | None:
        epochs = tune.runs.glob("tune_*/ray/transfer/*/checkpoint_00000[3-6]")
        trials, workers = [epoch.parent.name for epoch in epochs], tune.trial_workers()
        return next((workers[trial] for trial in trials if trial in workers), None)

    os.kill(wait_for(in_the_middle, process), signal.SIGKILL)
    os.kill(wait_for(lambda: tune.workers("ray::_final"), process)[0], signal.SIGKILL)
    return tune, answer_of(process)


def test_killed_workers_are_replaced_and_a_trial_goes_on_from_its_last_epoch(bereaved: tuple[Tune, Answer]) -> None:
    tune, answer = bereaved
    assert_complete(tune, answer, seeds=1)
    assert {result.cost["epochs"] for result in tune.results("search")} == {LONG}
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
of, trial = cluster.Workers.of, tune._trial
cluster.Workers.of = lambda *given: replace(of(*given), bytes_each=2**30)

def greedy(config, **given):
    import os, torch
    from finetune.trainee import FineTuning
    if config["head"] == "mlp" and config["weight_decay"] > 1:
        os._exit(1)
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
"""A head of several layers takes four gigabytes, where each trial has one; with much decay its process dies."""
GRID = 4
WHY = {
    (1e12, "linear"): "the loss became nan",
    (0.05, "mlp"): "can't allocate memory",
    (1e12, "mlp"): "its worker process has died",
}


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory, small_data_dir: Path) -> tuple[Tune, Answer]:
    """A search in which three of four trials fail, each for another reason, interrupted and continued."""
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
    tried = {(one["arm"], one["config"]["weight_decay"], one["config"]["head"]): one["why"] for one in failed}
    assert len(failed) == len(tried) and tried.keys() == {(arm, *one) for arm in ARMS for one in WHY}
    for (_, *one), why in tried.items():
        assert WHY[tuple(one)] in why
    content = json.loads((tune.folder / "tune.json").read_text())
    assert (content["failed"], [row["failed"] for row in content["search_results"]]) == (failed, [3, 3])
    found = {(result.config["weight_decay"], result.config["head"]) for result in tune.results("final")}
    assert found == {(0.05, "linear")}
    assert "failed" in answer.stdout


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of its own."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path) -> Path:
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            stream.write(bytes(4096))
    return filler


@dataclass(frozen=True, kw_only=True)
class Filled:
    """A study whose disk got full, then that of --out, then that of --json, and at last had room."""

    tune: Tune
    recorded: list[str]
    """Lines of the store while the disk was full."""
    study: Answer
    out: Answer
    json: Answer
    room: Answer


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, small_data_dir: Path) -> Iterator[Filled]:
    folder = tmp_path_factory.mktemp("filled")
    tune = Tune(folder=folder, beats=small_data_dir)
    with small_disk(tune.runs, "16m"), small_disk(folder / "full", "4k") as full:
        process = tune.start("--seeds", "1")
        wait_for(lambda: (tune.runs / "results.jsonl").exists(), process)
        filler = fill(tune.runs)
        study, recorded = answer_of(process), tune.lines()
        filler.unlink()
        resumed = ("--seeds", "1", "--resume")
        yield Filled(
            tune=tune,
            recorded=recorded,
            study=study,
            out=tune.run(*resumed, "--out", full / "tuned.pt"),
            json=tune.run(*resumed, "--json", full / "tune.json"),
            room=tune.run(*resumed),
        )


def test_a_full_disk_is_one_line_that_names_it(filled: Filled) -> None:
    tune, full = filled.tune, filled.tune.folder / "full"
    said = {tune.runs / "tune_encoder": filled.study, full / "tuned.pt": filled.out, full / "tune.json": filled.json}
    for place, (code, _, stderr) in said.items():
        assert code == 2 and stderr.startswith(f"error: the disk of {place}") and stderr.count("\n") == 1, stderr
        assert " is full; with more room, to continue: python -m finetune tune" in stderr
    assert not any((full / name).exists() for name in ("tuned.pt", "tune.json"))


def test_what_was_recorded_before_the_disk_was_full_is_kept(filled: Filled) -> None:
    assert_complete(filled.tune, filled.room, seeds=1)
    assert 0 < len(filled.recorded) < len(filled.tune.lines())
    assert filled.tune.lines()[: len(filled.recorded)] == filled.recorded
    assert list(filled.tune.runs.glob("tune_*/failed.jsonl")) == []


@pytest.fixture(scope="module")
def side_by_side(tmp_path_factory: pytest.TempPathFactory, small_data_dir: Path) -> tuple[Tune, list[Answer]]:
    """Two seeds at once without a home folder, into one new MLflow file; and the first of them a second time."""
    tune = Tune(folder=tmp_path_factory.mktemp("side_by_side"), beats=small_data_dir)
    more = ("--seeds", "1", "--trials", "1", "--tracking", tune.folder / "mlflow.db")
    both = [tune.start(*more, "--seed", seed, HOME="/proc/no-home") for seed in ("0", "1")]
    wait_for(lambda: list(tune.runs.glob("tune_*seed0/study.json")), both[0])
    again = tune.run(*more)
    return tune, [again, *map(answer_of, both)]


def test_a_study_is_worked_on_by_one_tune_at_a_time(side_by_side: tuple[Tune, list[Answer]]) -> None:
    tune, (again, *_) = side_by_side
    (folder,) = tune.runs.glob("tune_*seed0")
    assert again.code == 2 and again.stderr.count("\n") == 1
    assert again.stderr.startswith(f"error: another tune works on {folder}: wait for it, or take another --seed")


def test_two_studies_at_once_both_finish_and_need_no_home(side_by_side: tuple[Tune, list[Answer]]) -> None:
    tune, (_, *both) = side_by_side
    for code, _, stderr in both:
        assert code == 0 and all("atplotlib" in line for line in stderr.splitlines()), stderr  # on its own cache
    expected = {(arm, seed): 1 for arm in ARMS for seed in (0, 1)}
    assert Counter((result.arm, result.seed) for result in tune.results("search")) == expected
    assert {(result.arm, result.seed) for result in tune.results("final")} >= expected.keys()
    parents, children = tracked_runs(tune)
    assert len(parents) == 2 and len(children) == len(tune.lines())
    assert {run.info.status for run in (*parents, *children)} == {"FINISHED"}


ON_TWO_NODES = """
import atexit
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={{"num_cpus": 1, "include_dashboard": False}})
second, reached = cluster.add_node(num_cpus=1).node_id, {reached!r}
atexit.register(cluster.shutdown)
sys.argv += ["--address", cluster.address]
trial = tune._trial

def waits(config, **given):
    import time, ray
    from pathlib import Path
    from finetune.trainee import FineTuning
    plain = FineTuning.batches
    def batches(self, epoch):
        if epoch and ray.get_runtime_context().get_node_id() == second:
            Path(reached).touch()
            time.sleep(1e6)
        return plain(self, epoch)
    FineTuning.batches = batches
    try:
        trial(config, **given)
    finally:
        FineTuning.batches = plain

tune._trial = waits
"""
"""On the second node a trial comes to its second epoch, says so and goes no further."""


def test_a_cluster_that_loses_a_node_runs_its_trials_again_elsewhere(tmp_path: Path, small_data_dir: Path) -> None:
    reached = tmp_path / "reached"
    tune = Tune(folder=tmp_path, beats=small_data_dir, patch=ON_TWO_NODES.format(reached=str(reached)))
    process = tune.start("--scheduler", "fifo", "--seeds", "1", RAY_AUTH_TOKEN=secrets.token_hex(32))
    wait_for(reached.exists, process)
    (second,) = [number for number, title in tune.processes().items() if "/raylet " in title and "--head" not in title]
    os.kill(second, signal.SIGKILL)
    answer = answer_of(process)
    assert_complete(tune, answer, seeds=1)
    assert answer.stdout.count("search transfer: a worker was lost") == 1
    assert {result.cost["epochs"] for result in tune.results("search")} == {2}


def test_memory_is_limited_on_top_of_what_the_process_held(
    python: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    program = """
import torch
from experiments.machine import limit_memory
for attempt in range(2):
    limit_memory(2**29, "cpu")
    torch.ones(2**26)
    try:
        torch.ones(2**28)
    except RuntimeError as error:
        print("can't allocate memory" in str(error))
"""
    done = python("-c", program)
    assert (done.stdout, done.stderr) == ("True\nTrue\n", "")
