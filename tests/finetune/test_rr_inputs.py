"""RR ratios beside the signal, from the recipe to the file and back."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import models
from data.balance import BALANCES
from data.beats import Beats
from data.intervals import RATIOS
from data.split import Split
from data.synthetic import synthetic_arrhythmia
from experiments.machine import Machine
from finetune.intervals import COLUMNS, beside
from finetune.recipe import Recipe
from finetune.train import Arm, Context, to_checkpoint, train
from finetune.trainee import FineTuning, evaluate
from models.checkpoint import load, restore_classifier, save
from models.encoder import EncoderSpec
from models.heads import HEADS, Head

SPEC = EncoderSpec(name="resnet1d", options={"width": 2, "kernel": 3})
CONTEXT = Context(dataset="synthetic", protocol="beat-random", badge="beat-random", classes=("N", "S", "V", "F", "Q"))
RECIPE = Recipe(epochs=1, batch_size=32, augment="none")


@pytest.fixture(scope="module")
def split() -> Split:
    beats = synthetic_arrhythmia(2400, 0)
    train_part, validation = (beats.select(torch.arange(first, 2400, 2)) for first in (0, 1))
    return Split(
        train=train_part,
        validation=validation,
        load_test=lambda: validation,
        protocol="beat-random",
        badge="beat-random",
    )


def test_causal_ratios_are_those_that_do_not_look_ahead() -> None:
    assert [RATIOS[column].name for column in COLUMNS["causal"]] == ["log_before_over_last", "log_previous_over_last"]
    assert [RATIOS[column] for column in COLUMNS["all"]] == list(RATIOS)


@pytest.mark.parametrize("intervals", COLUMNS)
def test_the_recipe_names_the_columns(intervals: str, split: Split) -> None:
    found = beside(split.train, intervals)
    assert (found is None) is (intervals == "none")
    if found is not None:
        assert split.train.intervals is not None
        assert torch.equal(found, split.train.intervals[:, list(COLUMNS[intervals])])


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("intervals", ["causal", "all"])
def test_a_classifier_reads_them_and_comes_back_from_its_file(
    intervals: str, head: str, split: Split, tmp_path: Path
) -> None:
    recipe = replace(RECIPE, intervals=intervals, head=head)
    trained = train(Arm(name="scratch", spec=SPEC), split, recipe, 0, CONTEXT, Machine())
    save(tmp_path / "a.pt", to_checkpoint(trained, split))
    found = load(tmp_path / "a.pt")
    restored = restore_classifier(found, "a.pt").eval()
    assert found.options["intervals"] == intervals
    assert evaluate(restored, split.validation, intervals).tolist() == trained.validation.confusion
    signal, ratios = split.validation.signal[:8], beside(split.validation, intervals)
    assert ratios is not None
    for column in range(ratios.shape[1]):
        changed = ratios[:8].clone()
        changed[:, column] += 1
        assert not torch.equal(restored(signal, ratios[:8]), restored(signal, changed))


def early_or_not(beats: Beats) -> Beats:
    """The beats in two classes of many each: those that come early, and the others."""
    assert beats.intervals is not None
    return replace(beats, target=(beats.intervals[:, 0] < -0.1).long())


def test_intervals_help_where_they_tell_the_class(split: Split) -> None:
    """The encoder stays frozen and the signal empty: only the ratios tell early beats from others."""
    early = early_or_not(replace(split.train, signal=torch.zeros_like(split.train.signal)))
    recipe = replace(RECIPE, schedule="frozen", epochs=20, lr=0.05)
    blind, seeing = (
        train(
            Arm(name="scratch", spec=SPEC),
            replace(split, train=early, validation=early),
            replace(recipe, intervals=intervals),
            0,
            CONTEXT,
            Machine(),
        ).validation.metrics["macro_recall"]
        for intervals in ("none", "causal")
    )
    assert blind == 0.5 and seeing > 0.9


@pytest.mark.parametrize("balance", BALANCES)
def test_every_balance_keeps_them_beside_their_beats(balance: str, split: Split) -> None:
    model = Arm(name="scratch", spec=SPEC).build("linear", 5, 0, len(COLUMNS["all"]))
    recipe = replace(RECIPE, balance=balance, intervals="all")
    mixed = replace(split.train, target=(torch.arange(len(split.train)) % 4 == 0).long())
    tuning = FineTuning(model, replace(split, train=mixed), recipe, 0, Machine())
    assert tuning.intervals is not None and tuning.intervals.shape == (len(tuning.signal), len(RATIOS))
    assert tuning.loss(tuning.batches(0)[0]).isfinite()


def test_beats_without_them_are_refused_before_anything_is_trained(split: Split) -> None:
    without = replace(split, train=replace(split.train, intervals=None))
    with pytest.raises(ValueError, match=r"^--intervals causal: the beats of .* do not carry .*: mitdb, .*ds1-ds2"):
        train(Arm(name="scratch", spec=SPEC), without, replace(RECIPE, intervals="causal"), 0, CONTEXT, Machine())


def test_without_them_the_same_weights_are_drawn_as_ever() -> None:
    arm = Arm(name="scratch", spec=SPEC)
    with_ratios, without = arm.build("linear", 5, 0, 2), arm.build("linear", 5, 0)
    assert all(
        torch.equal(a, b) for a, b in zip(with_ratios.encoder.parameters(), without.encoder.parameters(), strict=True)
    )
    assert [p.shape for p in models.build(SPEC).parameters()] == [p.shape for p in without.encoder.parameters()]


class Spy(Head):
    """Gives back what it reads."""

    def forward(self, tokens_BND: Tensor) -> Tensor:
        return tokens_BND[:, 0]


def test_feature_dropout_hides_features_in_training_and_ratios_never(split: Split) -> None:
    model = Arm(name="scratch", spec=SPEC).build("linear", 5, 0, num_intervals=2)
    tuning = FineTuning(model, split, replace(RECIPE, intervals="causal", feature_dropout=0.75), 0, Machine())
    signal, ratios = split.train.signal[:512], beside(split.train, "causal")
    assert ratios is not None and tuning.module is model
    model.head = Spy()
    whole = model.eval()(signal, ratios[:512])
    model.head.train()
    hidden = model(signal, ratios[:512])
    dim = model.encoder.dim
    assert torch.equal(whole[:, dim:], ratios[:512]) and torch.equal(hidden[:, dim:], ratios[:512])
    before, after = whole[:, :dim][whole[:, :dim] != 0], hidden[:, :dim][whole[:, :dim] != 0]
    assert (after == 0).float().mean() == pytest.approx(0.75, abs=0.05)
    assert torch.allclose(after[after != 0], 4 * before[after != 0])


def test_feature_dropout_leaves_other_training_as_it_was(split: Split) -> None:
    arm = Arm(name="scratch", spec=SPEC)
    curves = [
        train(arm, split, replace(RECIPE, head="mlp", feature_dropout=share), 0, CONTEXT, Machine()).curve
        for share in (0.0, 0.0, 0.5)
    ]
    assert curves[0] == curves[1] != curves[2]
