import json
import subprocess
import sys
from pathlib import Path

import pytest

from pretrain import TASKS
from tests.conftest import ROOT

NUM_STEPS = 3

WORKER = """
import json, os, sys
import torch, torch.distributed as dist
import models
from data.synthetic import synthetic_ptb
from pretrain import TASKS, entry, task_class
from pretrain.task import Batch, Objective
from pretrain.team import Team

rank, size, meeting = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
if size > 1:
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
team, beats = Team(rank, size), synthetic_ptb(33, 0)
batch = Batch(beats.signal, beats.valid_length, beats.labels, beats.group)


def double(tensors):
    return [tensor.double() if tensor.is_floating_point() else tensor for tensor in tensors]


def steps(name, architecture):
    torch.manual_seed(0)
    task = task_class(name)(models.build(models.parse(architecture)), Objective()).double()
    parameters = [parameter for parameter in task.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.01)
    said = []
    for step in range(3):
        torch.manual_seed(step)
        task.before_step(step / 3)
        views = double(task.views(batch))
        outputs = task(*map(team.rows, views))
        loss = task.objective([team.gather(rows, len(batch.signal)) for rows in outputs], views)
        optimizer.zero_grad()
        loss.backward()
        team.average(parameters)
        optimizer.step()
        gradient = torch.cat([parameter.grad.flatten() for parameter in parameters])
        said.append([loss.item(), gradient.norm().item(), gradient[:: len(gradient) // 50].tolist()])
    return said


found = {}
for name in TASKS:
    for architecture in ("transformer1d@dim=16,depth=1", "tcn1d@width=8,depth=2", "resnet1d@width=4,kernel=3"):
        if entry(name).encoders and architecture.partition("@")[0] not in entry(name).encoders:
            continue
        found[f"{name} {architecture}"] = steps(name, architecture)
found["agree"] = team.agree(rank == 0)
if size > 1:
    dist.barrier()
if rank == size - 1:
    json.dump(found, sys.stdout)
    sys.stdout.flush()
os._exit(0)  # the threads of a process group may abort an orderly end, which is not what is tested
"""


def run_workers(size: int, meeting: Path) -> dict[str, list]:
    """What the last of `size` workers found."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), str(size), str(meeting)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    said = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0] * size, said
    return json.loads(said[-1][0])


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, list]]:
    """By number of workers."""
    return {size: run_workers(size, tmp_path_factory.mktemp("meeting") / "place") for size in (1, 2)}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("architecture", ["transformer1d", "tcn1d"])
def test_two_workers_make_the_steps_of_one(task: str, architecture: str, found: dict[int, dict[str, list]]) -> None:
    """The same loss and gradients, step after step, whoever encoded which beats (33 of them: shares are unequal)."""
    alone, two = (
        [said for name, said in found[size].items() if name.startswith(f"{task} {architecture}")] for size in (1, 2)
    )
    assert len(alone) == len(two) == (0 if task == "jepa" and architecture == "tcn1d" else 1)
    for by_one, by_two in zip(alone, two, strict=True):
        assert len(by_one) == NUM_STEPS
        for (loss, norm, gradient), (other_loss, other_norm, other_gradient) in zip(by_one, by_two, strict=True):
            assert other_loss == pytest.approx(loss, rel=1e-6)
            assert other_norm == pytest.approx(norm, rel=1e-5) and norm > 0
            assert other_gradient == pytest.approx(gradient, rel=1e-4, abs=1e-6 * norm)


def test_batchnorm_sees_each_workers_rows_alone(found: dict[int, dict[str, list]]) -> None:
    """What differs is said in `pretrain.team`: an encoder with BatchNorm makes other, though similar, steps."""
    name = "supervised resnet1d@width=4,kernel=3"
    loss, other = found[1][name][0][0], found[2][name][0][0]
    assert loss != pytest.approx(other, rel=1e-6)
    assert loss == pytest.approx(other, rel=0.3)


def test_all_take_the_first_workers_answer(found: dict[int, dict[str, list]]) -> None:
    assert found[1]["agree"] is found[2]["agree"] is True
