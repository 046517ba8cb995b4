import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray

from data.known import FILES
from experiments.machine import Machine
from models.checkpoint import load
from pretrain.cli import Pretrain
from pretrain.distributed import check_room
from tests.conftest import ROOT
from tests.samples import assert_refused

FLAGS = (
    "--task contrastive --arch transformer1d@dim=16,depth=1 --batch-size 48 --precision fp32 --threads 1 --device cpu "
    "--tracking none --no-pictures --save-every 0.1"
)
LONG = 150
"""Epochs of four steps: long enough to be killed in."""

PRETRAIN = "import sys; from experiments import cli; from pretrain.cli import Pretrain; cli.main('pretrain', Pretrain)"
ON_TWO_NODES = """
import sys
from ray.cluster_utils import Cluster
from experiments import cli
from pretrain.cli import Pretrain

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
cluster.add_node(num_cpus=1)
try:
    cli.main("pretrain", Pretrain, [*sys.argv[1:], "--address", cluster.address])
finally:
    cluster.shutdown()
"""


@dataclass
class Team:
    """Runs of the command on two workers."""

    folder: Path

    def start(self, name: str, *flags: str, program: str = PRETRAIN) -> subprocess.Popen[str]:
        files = ["--data-dir", self.folder, "--out", self.folder / f"{name}.pt", "--json", self.folder / f"{name}.json"]
        command = [sys.executable, "-c", program, *FLAGS.split(), *map(str, files), "--workers", "2", *flags]
        kept = {key: value for key, value in os.environ.items() if not key.startswith("HEART_")}
        marked = {**kept, "HEART_TEAM": name, "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=ROOT, env=marked, stdout=pipe, stderr=pipe, text=True)

    def outcome(self, name: str) -> dict[str, Any]:
        return json.loads((self.folder / f"{name}.json").read_text())

    def wait_for_state(self, name: str) -> None:
        for _ in range(1200):
            if (self.folder / f"{name}.pt.partial").exists():
                return
            time.sleep(0.05)
        pytest.fail(f"{name} wrote no state")


def workers_of(name: str) -> list[int]:
    """Process numbers of the Ray Train workers of the run marked by `name`."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            try:
                title, environment = (process / "cmdline").read_text(), (process / "environ").read_text()
            except OSError:
                continue
            if "ray::" in title and "TrainWorker" in title and f"HEART_TEAM={name}" in environment:
                found.append(int(process.name))
    return found


@pytest.fixture(scope="module")
def team(small_data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Team:
    folder = tmp_path_factory.mktemp("team")
    shutil.copy(small_data_dir / FILES["ptb"]["train"], folder)
    return Team(folder)


@pytest.fixture(scope="module")
def undisturbed(team: Team) -> dict[str, Any]:
    process = team.start("undisturbed", "--epochs", str(LONG))
    _, stderr = process.communicate(timeout=300)
    assert (process.returncode, stderr) == (0, "")
    return team.outcome("undisturbed")


def test_a_killed_worker_on_one_of_two_nodes_is_survived_bit_by_bit(team: Team, undisturbed: dict[str, Any]) -> None:
    process = team.start("survivor", "--epochs", str(LONG), program=ON_TWO_NODES)
    team.wait_for_state("survivor")
    workers = workers_of("survivor")
    assert len(workers) == 2
    os.kill(workers[-1], signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert int(stdout.split("continuing from step ")[1].split()[0]) > 0
    survivor = team.outcome("survivor")
    assert survivor["weights_hash"] == undisturbed["weights_hash"]
    assert survivor["losses"] == undisturbed["losses"]


def test_a_killed_driver_is_resumed_bit_by_bit(team: Team, undisturbed: dict[str, Any]) -> None:
    with team.start("orphan", "--epochs", str(LONG)) as driver:
        team.wait_for_state("orphan")
        driver.kill()
    process = team.start("orphan", "--epochs", str(LONG), "--resume")
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert int(stdout.split("continuing from step ")[1].split()[0]) > 0
    assert team.outcome("orphan")["weights_hash"] == undisturbed["weights_hash"]
    assert not (team.folder / "orphan.pt.partial").exists()


def test_two_workers_end_near_one(team: Team) -> None:
    """Adam makes much of rounding where a gradient is nothing else, so weights drift; losses stay together."""
    alone, two = (team.start(name, "--epochs", "8", "--workers", size) for name, size in (("alone", "1"), ("two", "2")))
    for process in (alone, two):
        _, stderr = process.communicate(timeout=300)
        assert process.returncode == 0, stderr
    assert team.outcome("two")["losses"] == pytest.approx(team.outcome("alone")["losses"], rel=1e-3)
    assert load(team.folder / "two.pt").cost["beats"] == load(team.folder / "alone.pt").cost["beats"] == 8 * 192


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--address", "127.0.0.1:1"], ["--address 127.0.0.1:1"]),
        (["--workers", "0"], ["--workers 0"]),
        (["--workers", "64"], ["--workers 64", "--batch-size is 48"]),
        (["--workers", "4096", "--batch-size", "4096"], ["--workers 4096", "this machine has cores for"]),
        (["--stream"], ["--stream", "--workers"]),
        (["--temperature", "0"], ["--temperature 0.0: a positive number is needed"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else str(value),
)
def test_a_bad_input_is_one_line(flags: list[str], said: list[str], team: Team) -> None:
    process = team.start("refused", *flags)
    stdout, stderr = process.communicate(timeout=300)
    assert_refused((process.returncode, stdout, stderr), said)


@pytest.mark.parametrize(
    ("device", "there", "said"),
    [
        ("cpu", {"CPU": 1.0}, "there is CPU for 1 of them alone"),
        ("cuda:0", {"CPU": 8.0, "GPU": 1.0}, "there is GPU for 1 of them alone"),
        ("cuda:0", {"CPU": 8.0}, "there is GPU for 0 of them alone"),
        ("cuda:0", {"CPU": 8.0, "GPU": 2.0}, None),
    ],
)
def test_workers_that_would_wait_for_ever_are_refused(
    device: str, there: dict[str, float], said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: there)
    flags = Pretrain(task="masked", workers=2)
    with pytest.raises(ValueError, match=f"--workers 2: {said}") if said else nullcontext():
        check_room(flags, Machine(device=device))
