"""Regularisation, averages and losses of a fine-tuning, and what is left of it after an interruption."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import models
from data.split import Split
from data.synthetic import synthetic_arrhythmia
from experiments.machine import Machine
from finetune.recipe import Recipe
from finetune.train import Arm, Context, to_checkpoint, train
from finetune.trainee import FineTuning, MovingAverage
from models.checkpoint import load, restore_classifier, save, weights_of
from models.encoder import EncoderSpec
from models.losses import LOSSES
from tests.samples import checkpoint_of

SPEC = EncoderSpec(name="resnet1d", options={"width": 4, "kernel": 3})
CONTEXT = Context(dataset="s", protocol="beat-random", badge="beat-random", classes=("N", "S", "V", "F", "Q"))
RECIPE = Recipe(epochs=2, batch_size=64, lr=0.01, weight_decay=0.3)


@pytest.fixture(scope="module")
def split() -> Split:
    beats = synthetic_arrhythmia(800, 0)
    return Split(
        train=beats.select(torch.arange(500)),
        validation=beats.select(torch.arange(500, 800)),
        load_test=lambda: beats,
        protocol="beat-random",
        badge="beat-random",
    )


@pytest.fixture(scope="module")
def arm() -> Arm:
    torch.manual_seed(7)
    return Arm(name="transfer", spec=SPEC, checkpoint=checkpoint_of(SPEC, models.build(SPEC)), origin="a.pt")


def tuning_of(arm: Arm, split: Split, recipe: Recipe) -> FineTuning:
    return FineTuning(arm.build(recipe.head, 5, 0), split, recipe, 0, Machine())


def test_l2_sp_is_half_the_squared_distance_from_the_start_of_what_learns(arm: Arm, split: Split) -> None:
    recipe = replace(RECIPE, schedule="top", num_stages=2, augment="none")
    plain, pulled = (tuning_of(arm, split, replace(recipe, l2_sp=strength)) for strength in (0.0, 0.1))
    start = weights_of(pulled.module)
    index = torch.arange(64)
    losses = []
    for tuning in (plain, pulled):
        tuning.before_step(0.0)
        tuning.module.eval()
        with torch.no_grad():
            for parameter in tuning.module.parameters():
                parameter += 0.01 * parameter.sign()
        losses.append(tuning.loss(index).item())
    learning = [name for name, parameter in pulled.module.encoder.named_parameters() if parameter.requires_grad]
    assert learning and all(name.startswith(("parts.block3", "parts.block4")) for name in learning)
    moved = weights_of(pulled.module)
    squares = [np.square((moved[f"encoder.{n}"] - start[f"encoder.{n}"]).numpy()).sum() for n in learning]
    assert losses[1] - losses[0] == pytest.approx(0.05 * float(np.sum(squares)), rel=1e-3)


def test_l2_sp_takes_the_place_of_weight_decay_and_keeps_weights_near(arm: Arm, split: Split) -> None:
    tuning = tuning_of(arm, split, replace(RECIPE, l2_sp=0.1))
    decays = {
        (group["stage"] == "head", group["kind"]): group["weight_decay"] for group in tuning.optimizer.param_groups
    }
    assert decays[True, "weight"] == 0.3 and decays[False, "weight"] == 0.0
    assert arm.checkpoint is not None
    start = arm.checkpoint.weights
    far = {}
    for strength in (0.001, 10.0):
        trained = train(arm, split, replace(RECIPE, l2_sp=strength), 0, CONTEXT, Machine())
        end = weights_of(trained.model.encoder)
        names = [name for name, _ in trained.model.encoder.named_parameters()]
        far[strength] = sum(float((end[name] - start[name]).square().sum()) for name in names)
    assert far[10.0] < 0.2 * far[0.001]


def test_the_average_is_a_plain_mean_first_and_then_forgets(arm: Arm) -> None:
    model = arm.build("linear", 5, 0)
    average, seen = MovingAverage(model), []
    for step in range(1, 7):
        with torch.no_grad():
            model.head.classify.bias.fill_(float(step))  # pyright: ignore
        average.update(model, half_life_steps=2.0)
        seen.append(average.model.head.classify.bias[0].item())  # pyright: ignore
    share, expected = 1 - 0.5 ** (1 / 2), []
    for step in range(1, 7):
        before = expected[-1] if expected else 0.0
        expected.append(before + max(1 / step, share) * (step - before))
    assert seen == pytest.approx(expected)
    assert seen[1] == pytest.approx(1.5)


def test_the_averaged_weights_are_what_is_validated_and_kept(arm: Arm, split: Split) -> None:
    plain, averaged = (train(arm, split, replace(RECIPE, average=a), 0, CONTEXT, Machine()) for a in (0.0, 0.5))
    assert [e["loss"] for e in plain.curve] == [e["loss"] for e in averaged.curve]  # the training is the same
    one, other = weights_of(plain.model), weights_of(averaged.model)
    assert any(not torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("balance", ["none", "class_weight", "balanced_batches"])
def test_every_loss_trains_with_every_kind_of_balance(balance: str, loss: str, arm: Arm, split: Split) -> None:
    trained = train(arm, split, replace(RECIPE, loss=loss, balance=balance), 0, CONTEXT, Machine())
    assert np.isfinite([epoch["loss"] for epoch in trained.curve]).all()
    assert trained.curve[1]["loss"] < trained.curve[0]["loss"]


def test_the_power_of_class_weights_trades_precision_for_recall(arm: Arm, split: Split) -> None:
    weights = []
    for power in (0.0, 1.0):
        tuning = tuning_of(arm, split, replace(RECIPE, weight_power=power))
        logits = torch.zeros(len(tuning.target), 5)
        losses = [tuning.criterion(logits[[i]], tuning.target[[i]]).item() for i in range(100)]
        weights.append(losses)
    assert len({round(loss, 4) for loss in weights[0]}) == 1
    rare = int((split.train.labels[:100] == 3).nonzero()[0])
    common = int((split.train.labels[:100] == 0).nonzero()[0])
    assert weights[1][rare] > 10 * weights[1][common]


@pytest.mark.parametrize(
    "change",
    [
        {"schedule": "gradual", "thaw_start": 0.3, "thaw_interval": 0.1, "average": 0.5, "l2_sp": 0.1},
        {"schedule": "adapters"},
        {"schedule": "lp_ft", "thaw_warm_up": 0.3},
        {"schedule": "chain_thaw", "thaw_start": 0.2, "average": 1.0},
    ],
    ids=lambda change: change["schedule"],
)
def test_interrupted_and_resumed_has_every_bit(
    change: dict[str, float], arm: Arm, split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, state = replace(RECIPE, epochs=5, **change), tmp_path / "a.partial"  # pyright: ignore
    whole = train(arm, split, recipe, 0, CONTEXT, Machine())
    before_step, pending = FineTuning.before_step, [0.55, 0.15]

    def interrupted(self: FineTuning, progress: float) -> None:
        if pending and progress >= pending[-1]:
            pending.pop()
            os.kill(os.getpid(), signal.SIGINT)
        before_step(self, progress)

    with monkeypatch.context() as patch:
        patch.setattr(FineTuning, "before_step", interrupted)
        for resume in (False, True):
            with pytest.raises(KeyboardInterrupt):
                train(arm, split, recipe, 0, CONTEXT, Machine(), state_file=state, resume=resume)
    resumed = train(arm, split, recipe, 0, CONTEXT, Machine(), state_file=state, resume=True)
    assert resumed.curve == whole.curve
    weights = weights_of(whole.model)
    assert all(torch.equal(tensor, weights[key]) for key, tensor in weights_of(resumed.model).items())


def test_a_state_is_told_of_at_the_end_of_each_epoch(arm: Arm, split: Split, tmp_path: Path) -> None:
    told: list[int] = []

    def saved(path: Path) -> None:
        told.append(path.stat().st_size)

    train(arm, split, RECIPE, 0, CONTEXT, Machine(), state_file=tmp_path / "a.state", saved=saved)
    assert len(told) == RECIPE.epochs


def test_other_rates_may_go_on_from_a_state_where_they_are_free(arm: Arm, split: Split, tmp_path: Path) -> None:
    state = tmp_path / "a.state"
    train(arm, split, RECIPE, 0, CONTEXT, Machine(), state_file=state)
    changed = replace(RECIPE, lr=0.02)
    with pytest.raises(ValueError, match=r"lr was 0\.01, is 0\.02"):
        train(arm, split, changed, 0, CONTEXT, Machine(), state_file=state, resume=True)
    train(arm, split, changed, 0, CONTEXT, Machine(), state_file=state, resume=True, free=("lr",))


def test_a_weight_decay_that_changed_is_the_one_that_decays(arm: Arm, split: Split) -> None:
    donor, heir = (tuning_of(arm, split, replace(RECIPE, weight_decay=decay, l2_sp=0.1)) for decay in (0.3, 0.9))
    heir.optimizer.load_state_dict(donor.optimizer.state_dict())
    heir.restore(donor.state())
    decays = {(group["stage"] == "head", group["kind"]): group["weight_decay"] for group in heir.optimizer.param_groups}
    assert decays[True, "weight"] == 0.9 and decays[False, "weight"] == 0.0


def test_the_last_step_is_in_the_average_that_is_validated(arm: Arm, split: Split) -> None:
    one_step = replace(RECIPE, epochs=1, batch_size=1000, average=5.0)
    averaged, plain = (train(arm, split, replace(one_step, average=a), 0, CONTEXT, Machine()) for a in (5.0, 0.0))
    weights = weights_of(plain.model)
    assert all(torch.equal(tensor, weights[key]) for key, tensor in weights_of(averaged.model).items())


@pytest.mark.parametrize("schedule", ["adapters", "norm_only"])
def test_a_classifier_comes_back_without_its_adapters(schedule: str, arm: Arm, split: Split, tmp_path: Path) -> None:
    trained = train(arm, split, replace(RECIPE, schedule=schedule), 0, CONTEXT, Machine())
    save(tmp_path / "a.pt", to_checkpoint(trained, split))
    found = load(tmp_path / "a.pt")
    restored = restore_classifier(found, "a.pt").eval()
    x = split.validation.signal[:20]
    with torch.no_grad():
        assert torch.allclose(restored(x), trained.model.eval()(x), atol=1e-6)
    assert found.options["thresholds"]["floor"] == 0.95


def test_a_schedule_of_parameters_that_an_encoder_lacks_is_refused(split: Split) -> None:
    tcn = Arm(name="scratch", spec=EncoderSpec(name="tcn1d", options={"norm": "none"}))
    with pytest.raises(ValueError, match="--schedule norm_only: tcn1d@norm=none has no such parameters"):
        train(tcn, split, replace(RECIPE, schedule="norm_only"), 0, CONTEXT, Machine())


def test_partly_frozen_stages_keep_what_is_frozen(arm: Arm, split: Split) -> None:
    for schedule, learns in (("norm_only", ("weight", "bias")), ("bias_only", ("bias",))):
        before = weights_of(arm.build("linear", 5, 0).encoder)
        trained = train(arm, split, replace(RECIPE, schedule=schedule), 0, CONTEXT, Machine())
        after: dict[str, Tensor] = weights_of(trained.model.encoder)
        moved = {
            name for name, _ in trained.model.encoder.named_parameters() if not torch.equal(after[name], before[name])
        }
        norms = {
            f"{owner}.{kind}"
            for owner, part in trained.model.encoder.named_modules()
            if isinstance(part, torch.nn.BatchNorm2d)
            for kind in learns
        }
        assert moved == norms
