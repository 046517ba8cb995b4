import os
import signal
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
from torch import Tensor

import finetune.trainee as training
import models
from data.balance import BALANCES
from data.beats import Beats
from data.split import Split
from data.synthetic import synthetic_arrhythmia
from experiments.machine import Machine
from finetune.activations import Boundary
from finetune.recipe import Recipe
from finetune.schedules import SCHEDULES
from finetune.train import Arm, Context, Trained, to_checkpoint, train
from finetune.trainee import Epoch, FineTuning, evaluate
from models.checkpoint import load, restore_classifier, save, weights_of
from models.encoder import EncoderSpec
from models.heads import HEADS, Classifier
from tests.samples import checkpoint_of

SPEC = EncoderSpec(name="resnet1d", options={"width": 4, "kernel": 3})
COUNTS = (90, 10, 12, 7, 12)
RECIPE = Recipe(epochs=2, batch_size=16, lr=0.01)
ARMS = ("scratch", "transfer")


def never_read() -> NoReturn:
    raise AssertionError("the test part was read")


def take(beats: Beats, first: int, counts: tuple[int, ...]) -> Beats:
    places = [torch.nonzero(beats.labels == label).flatten() for label in range(5)]
    chosen = [place[first : first + count] for place, count in zip(places, counts, strict=True)]
    return beats.select(torch.cat(chosen))


@pytest.fixture(scope="module")
def split() -> Split:
    beats = synthetic_arrhythmia(2000, 0)
    return Split(
        train=take(beats, 0, COUNTS),
        validation=take(beats, max(COUNTS), (20, 0, 6, 0, 6)),
        load_test=never_read,
        protocol="beat-random",
        badge="beat-random",
    )


def make_arm(name: str) -> Arm:
    if name == "scratch":
        return Arm(name=name, spec=SPEC)
    torch.manual_seed(7)
    encoder = models.build(SPEC)
    encoder(torch.rand(16, 1, 187))  # statistics other than a fresh encoder's
    return Arm(name=name, spec=SPEC, checkpoint=checkpoint_of(SPEC, encoder), origin="a.pt")


CONTEXT = Context(dataset="synthetic", protocol="beat-random", badge="beat-random", classes=("N", "S", "V", "F", "Q"))


def fine_tune(arm: Arm, split: Split, recipe: Recipe = RECIPE, seed: int = 0) -> Trained:
    return train(arm, split, recipe, seed, CONTEXT, Machine())


def start_of(arm: Arm, seed: int = 0) -> dict[str, Tensor]:
    return weights_of(arm.build("linear", 5, seed).encoder)


@pytest.mark.parametrize("name", ARMS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_trains_what_it_says(schedule: str, name: str, split: Split) -> None:
    arm = make_arm(name)
    before = start_of(arm)
    if arm.checkpoint is not None:
        assert all(torch.equal(before[key], tensor) for key, tensor in arm.checkpoint.weights.items())
    trained = fine_tune(
        arm, split, replace(RECIPE, schedule=schedule, ratio=0.5, epochs=3, thaw_start=0.1, thaw_interval=0.1)
    )
    after = weights_of(trained.model.encoder)
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert (moved == set()) is (schedule == "frozen")
    head, fresh = trained.model.head, arm.build("linear", 5, 0).head
    assert any(not torch.equal(new, old) for new, old in zip(head.parameters(), fresh.parameters(), strict=True))
    assert len(trained.curve) == 3
    assert set(after) == set(before)


@pytest.mark.parametrize("balance", BALANCES)
def test_every_balance_trains_and_is_counted(balance: str, split: Split) -> None:
    split = replace(split, train=synthetic_arrhythmia(1000, 0))
    trained = fine_tune(make_arm("transfer"), split, replace(RECIPE, balance=balance, epochs=1, batch_size=500))
    result = trained.validation
    assert 0 <= result.metrics["macro_recall"] <= 1
    assert np.isfinite([epoch["loss"] for epoch in trained.curve]).all()
    made = BALANCES[balance](split.train, 0).beats
    assert result.cost["beats"] == len(made)
    assert trained.counts == (split.train.counts(), made.counts())
    assert sum(map(sum, result.confusion)) == len(split.validation)


@pytest.mark.parametrize("balance", BALANCES)
def test_only_balanced_batches_hold_equal_shares(balance: str, split: Split) -> None:
    split = replace(split, train=synthetic_arrhythmia(1000, 0))
    model = make_arm("scratch").build("linear", 5, 0)
    tuning = FineTuning(model, split, replace(RECIPE, balance=balance, batch_size=100), 0, Machine())
    shares = torch.stack([torch.bincount(tuning.target[batch], minlength=5) for batch in tuning.batches(0)])
    assert bool((shares.amax(1) - shares.amin(1) <= 1).all()) is (balance == "balanced_batches")
    epochs = [torch.cat(list(tuning.batches(epoch))) for epoch in (0, 0, 1)]
    assert torch.equal(epochs[0], epochs[1]) and not torch.equal(epochs[0], epochs[2])


@pytest.mark.parametrize("head", HEADS)
def test_every_head_trains_and_comes_back_from_its_file(head: str, split: Split, tmp_path: Path) -> None:
    trained = fine_tune(make_arm("transfer"), split, replace(RECIPE, head=head))
    save(tmp_path / "a.pt", to_checkpoint(trained, split))
    found = load(tmp_path / "a.pt")
    restored = restore_classifier(found, "a.pt")
    assert evaluate(restored, split.validation).tolist() == trained.validation.confusion
    assert (found.head, found.classes) == (head, split.train.classes)
    assert found.fingerprint == split.train.fingerprint


@pytest.mark.parametrize("name", ARMS)
def test_the_result_says_what_was_run(name: str, split: Split) -> None:
    arm = make_arm(name)
    result = fine_tune(arm, split, seed=3).validation
    assert (result.arm, result.part, result.seed) == (name, "validation", 3)
    assert (result.protocol, result.badge) == ("beat-random", "beat-random")
    assert result.encoder == arm.encoder_hash and (result.encoder is None) is (name == "scratch")
    assert (result.config["schedule"], result.config["lr"], result.config["arch"]) == ("full", 0.01, SPEC.label)
    assert {f"recall_{label}" for label in CONTEXT.classes} <= result.metrics.keys()


def test_the_same_seed_gives_the_same_run_and_another_one_another(split: Split) -> None:
    one, again, other = (fine_tune(make_arm("transfer"), split, seed=seed) for seed in (0, 0, 1))
    assert one.curve == again.curve != other.curve
    weights = weights_of(again.model)
    assert all(torch.equal(tensor, weights[key]) for key, tensor in weights_of(one.model).items())


@pytest.mark.parametrize("head", HEADS)
def test_arms_share_head_and_batches_by_seed(head: str, split: Split) -> None:
    transfer, scratch, other = (
        make_arm(name).build(head, 5, seed) for name, seed in (("transfer", 0), ("scratch", 0), ("scratch", 1))
    )
    first, second, third = (weights_of(model.head) for model in (transfer, scratch, other))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(not torch.equal(first[key], third[key]) for key in first)
    tunings = [FineTuning(model, split, RECIPE, 0, Machine()) for model in (transfer, scratch)]
    one, two = (torch.cat(list(tuning.batches(1))) for tuning in tunings)
    assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("hits", "kept"),
    [([30, 45, 44, 10], 2), ([30, 45, 10, 10], 1), ([45, 40, 10], 0), ([10, 20, 45], 2), ([0, 0], 1)],
    ids=str,
)
def test_the_latest_epoch_near_the_best_by_validation_is_restored(
    hits: list[int], kept: int, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 50 beats, 45 and 44 right are within a standard error (2.1) of each other, 45 and 40 are not."""
    seen: list[dict[str, Tensor]] = []

    def watched(model: Classifier, beats: Beats, intervals: str, _at: Boundary | None) -> Tensor:
        assert beats is split.validation and intervals == "none"
        seen.append(weights_of(model))
        return torch.zeros(len(beats), 2)

    def scripted(_logits: Tensor, _beats: Beats) -> np.ndarray:
        hit = hits[len(seen) - 1]
        return np.array([[hit, 50 - hit], [0, 50]])

    epochs: list[Epoch] = []
    monkeypatch.setattr(training, "predict", watched)
    monkeypatch.setattr(training, "confusion_of", scripted)
    context = replace(CONTEXT, classes=("N", "S"))
    recipe = replace(RECIPE, epochs=len(hits))
    trained = train(make_arm("scratch"), split, recipe, 0, context, Machine(), on_epoch=epochs.append)
    end = weights_of(trained.model)
    same = [all(torch.equal(end[key], state[key]) for key in end) for state in seen]
    assert same == [epoch == kept for epoch in range(len(hits))]
    assert trained.validation.confusion == [[hits[kept], 50 - hits[kept]], [0, 50]]
    assert epochs[-1].kept_confusion.tolist() == trained.validation.confusion
    assert [epoch.number for epoch in epochs] == list(range(len(hits)))


def test_a_class_weight_reaches_the_loss(split: Split) -> None:
    losses = {}
    for balance in ("none", "class_weight"):
        model = make_arm("scratch").build("linear", 5, 0)
        recipe = replace(RECIPE, balance=balance, augment="none")
        tuning = FineTuning(model, split, recipe, 0, Machine())
        with torch.no_grad():
            losses[balance] = tuning.loss(torch.arange(60, 120)).item()
    assert losses["none"] != losses["class_weight"]


@pytest.mark.parametrize(
    ("augment", "schedule", "augmented"),
    [
        ("always", "full", True),
        ("always", "frozen", True),
        ("thawed", "full", True),
        ("thawed", "first", True),
        ("thawed", "norm_only", True),
        ("thawed", "frozen", False),
        ("thawed", "top", False),
        ("none", "full", False),
    ],
)
def test_beats_are_augmented_where_the_recipe_says_so_and_only_then(
    augment: str, schedule: str, augmented: bool, split: Split
) -> None:
    given = split.train.signal.clone()
    model = make_arm("scratch").build("linear", 5, 0)
    tuning = FineTuning(model, split, replace(RECIPE, augment=augment, schedule=schedule), 0, Machine())
    tuning.before_step(0.0)
    model.eval()  # no dropout, no batch statistics: whatever differs is in the beats
    losses = set()
    for seed in (1, 2):
        torch.manual_seed(seed)
        with torch.no_grad():
            losses.add(tuning.loss(torch.arange(60)).item())
    assert (len(losses) == 2) is augmented
    assert torch.equal(split.train.signal, given)


def test_interrupted_and_resumed_keeps_the_best_epoch_and_every_bit(
    split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm, recipe, state = make_arm("transfer"), replace(RECIPE, schedule="gradual", epochs=3), tmp_path / "a.partial"
    whole = fine_tune(arm, split, recipe)
    before_step = FineTuning.before_step

    def interrupted(self: FineTuning, progress: float) -> None:
        if abs(progress - 0.5) < 0.01:
            os.kill(os.getpid(), signal.SIGINT)
        before_step(self, progress)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(FineTuning, "before_step", interrupted)
        train(arm, split, recipe, 0, CONTEXT, Machine(), state_file=state)
    resumed = train(arm, split, recipe, 0, CONTEXT, Machine(), state_file=state, resume=True)
    assert resumed.curve == whole.curve
    assert resumed.validation.confusion == whole.validation.confusion
    weights = weights_of(whole.model)
    assert all(torch.equal(tensor, weights[key]) for key, tensor in weights_of(resumed.model).items())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schedule": "melt"}, "unknown schedule 'melt'; choose from frozen"),
        ({"balance": "luck"}, "unknown balance 'luck'; choose from none"),
        ({"head": "hydra"}, "unknown head 'hydra'; choose from linear"),
        ({"lr": 0.0}, "lr"),
        ({"lr": -1.0}, "lr"),
        ({"lr": float("nan")}, "lr"),
        ({"ratio": -0.5}, "ratio"),
        ({"weight_decay": -0.1}, "weight.decay"),
    ],
    ids=str,
)
def test_a_recipe_is_checked_before_anything_runs(change: dict[str, float | str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Recipe(**change).check()  # pyright: ignore[reportArgumentType]


def test_a_checkpoint_that_does_not_fit_its_spec_is_named(split: Split) -> None:
    arm = make_arm("transfer")
    assert arm.checkpoint is not None
    weights = dict(arm.checkpoint.weights)
    del weights["parts.stem.0.weight"]
    with pytest.raises(ValueError, match=r"a\.pt does not fit the model: missing: parts\.stem\.0\.weight$"):
        fine_tune(replace(arm, checkpoint=replace(arm.checkpoint, weights=weights)), split)


@pytest.mark.parametrize(
    ("sources", "pretrained_by", "target", "by", "refused"),
    [
        ("ptb", "beat-random", "arrhythmia", "beat-random", False),
        ("ptb,arrhythmia:train", "beat-random", "arrhythmia", "beat-random", False),
        ("ptb,arrhythmia:train", "beat-random", "arrhythmia", "ds1-ds2", True),
        ("arrhythmia:train", "ds1-ds2", "mitdb", "ds1-ds2", False),
        ("mitdb:train", "beat-random", "arrhythmia", "beat-random", True),
        ("ptbxl", "beat-random", "ptbxl", "folds", True),
        ("ptb", "beat-random", "ptbdb", "patient", True),
        ("ptb", "beat-random", "ptb", "beat-random", False),
        ("parquet:a.parq", "beat-random", "parquet:a.parq", "patient", True),
        ("parquet:a.parq", "beat-random", "parquet:b.parq", "patient", False),
    ],
)
def test_an_encoder_that_may_have_seen_test_beats_is_refused(
    sources: str, pretrained_by: str, target: str, by: str, refused: bool, split: Split
) -> None:
    arm = make_arm("transfer")
    assert arm.checkpoint is not None
    seen = replace(arm.checkpoint, options={"data": sources, "protocol": pretrained_by})
    with pytest.raises(ValueError, match=f"may hold test beats of {target} by {by}: ") if refused else nullcontext():
        replace(arm, checkpoint=seen).check(replace(split, protocol=by), target)  # pyright: ignore[reportArgumentType]
