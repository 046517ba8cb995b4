import shutil
from pathlib import Path

import pytest
import torch

import models
from data.known import FILES
from data.synthetic import synthetic_ptb
from models.checkpoint import attach, load
from models.encoder import EncoderSpec
from models.params import decay_groups
from pretrain import TASKS, entry, task_class
from pretrain.cli import Pretrain
from pretrain.task import Batch, Objective, PretrainTask
from pretrain.train import pretrain_encoder

EVERY = [(task, encoder) for task in TASKS for encoder in entry(task).encoders or models.ENCODERS]
TRIED = [(task, encoder) for task, encoder in EVERY if encoder in ("resnet1d", "transformer1d", "gru")]
"""A task knows patches or it does not, whatever else an encoder is: three stand for all where a run is made."""


def make_task(task: str, encoder: str) -> PretrainTask:
    torch.manual_seed(0)
    return task_class(task)(models.build(EncoderSpec(name=encoder)), Objective())


@pytest.fixture(scope="module")
def batch() -> Batch:
    beats = synthetic_ptb(8, 0)
    return Batch(beats.signal, beats.valid_length, beats.labels)


@pytest.mark.parametrize(("task", "encoder"), EVERY)
def test_a_finite_loss_that_teaches_every_parameter(task: str, encoder: str, batch: Batch) -> None:
    made = make_task(task, encoder)
    loss = made.loss(batch)
    assert loss.shape == () and loss.dtype == torch.float32 and loss.isfinite()
    loss.backward()
    trained = [(name, p) for name, p in made.named_parameters() if p.requires_grad]
    assert [name for name, p in trained if p.grad is None or not p.grad.isfinite().all()] == []
    for stage, part in made.encoder.stages.items():
        assert any(p.grad is not None and p.grad.any() for p in part.parameters()), stage


@pytest.mark.parametrize(("task", "encoder"), EVERY)
def test_the_loss_follows_torchs_seed_and_not_the_batch_given(task: str, encoder: str, batch: Batch) -> None:
    made, given = make_task(task, encoder).eval(), batch.signal.clone()
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(made.loss(batch).item())
    assert losses[0] == losses[1] != losses[2]
    assert torch.equal(batch.signal, given)


@pytest.mark.parametrize(("task", "encoder"), EVERY)
def test_every_parameter_of_a_task_is_trained_once(task: str, encoder: str) -> None:
    made = make_task(task, encoder)
    trained = [id(p) for group in decay_groups(made, 0.1) for p in group["params"]]
    assert sorted(trained) == sorted(id(p) for p in made.parameters() if p.requires_grad)
    assert len(trained) > len(list(made.encoder.parameters()))


@pytest.mark.parametrize(("task", "encoder"), TRIED)
def test_only_the_encoder_is_saved(task: str, encoder: str, small_data_dir: Path, tmp_path: Path) -> None:
    shutil.copy(small_data_dir / FILES["ptb"]["train"], tmp_path)
    out = tmp_path / "out" / "a.pt"
    flags = Pretrain(
        task=task,
        arch=encoder,
        data_dir=tmp_path,
        epochs=1,
        batch_size=64,
        device="cpu",
        precision="fp32",
        tracking="none",
        out=out,
        pictures=False,
    )
    outcome = pretrain_encoder(flags)
    assert [path.name for path in out.parent.iterdir()] == ["a.pt"]
    found = load(out)
    fresh = models.build(EncoderSpec(name=encoder))
    assert set(found.weights) == set(fresh.state_dict())
    assert attach(found, "a.pt")[0].spec == fresh.spec
    assert (found.task, found.head, found.classes, found.seed) == (task, None, (), 0)
    assert found.preprocessing["num_samples"] == 187
    assert found.cost["beats"] == outcome.beats == 192
    assert found.weights_hash == outcome.weights_hash
    assert outcome.losses == [found.metrics["loss"]]
    assert outcome.probe.linear is None and "no probe" in outcome.probed_on


def test_an_unknown_task_lists_the_choices() -> None:
    with pytest.raises(ValueError, match=f"unknown task 'telepathy'; choose from {', '.join(TASKS)}"):
        entry("telepathy")


def test_file_names_of_tasks_differ() -> None:
    names = {Pretrain(task=task, arch=arch).out_file.name for task, arch in EVERY}
    assert len(names) == len(EVERY)
    assert Pretrain(task="masked").out_file == Path(__file__).parents[2] / "checkpoints" / "ptb_mae.pt"
