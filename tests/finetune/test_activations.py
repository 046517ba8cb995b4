"""What frozen stages make of beats is computed once, and nothing of the training changes by it."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import models
from data.split import Split
from data.synthetic import synthetic_arrhythmia
from experiments.machine import Machine
from finetune import activations
from finetune.activations import NoShelf, Rows, frozen_steps
from finetune.recipe import Recipe
from finetune.schedules import SCHEDULES
from finetune.train import Arm, Context, Trained, train
from finetune.trainee import FineTuning
from models.checkpoint import weights_of
from models.encoder import EncoderSpec
from models.heads import HEADS, Classifier
from models.params import make_optimizer, set_rates
from tests.samples import checkpoint_of

SMALL: Mapping[str, dict[str, int | float | str | bool]] = {
    "resnet1d": {"width": 4, "kernel": 3},
    "transformer1d": {"dim": 16, "depth": 2},
    "cnn_transformer1d": {"width": 8, "dim": 16, "depth": 1},
    "gru": {"width": 8, "depth": 1},
    "cnn2d": {"width": 8, "depth": 2},
}
CLASSES = ("N", "S", "V", "F", "Q")
CONTEXT = Context(dataset="synthetic", protocol="beat-random", badge="beat-random", classes=CLASSES)
RECIPE = Recipe(epochs=8, batch_size=64, lr=0.01, thaw_start=0.2, thaw_interval=0.13, ratio=0.5)


class Counting(NoShelf):
    """A shelf that keeps, and counts what is put on it."""

    def __init__(self) -> None:
        self.kept: dict[str, Tensor] = {}

    def take(self, key: str) -> Tensor | None:
        return self.kept.get(key)

    def put(self, key: str, activations: Tensor) -> None:
        assert key not in self.kept
        self.kept[key] = activations


@pytest.fixture(scope="module")
def split() -> Split:
    beats = synthetic_arrhythmia(600, 0)
    return Split(
        train=beats.select(torch.arange(300)),
        validation=replace(beats.select(torch.arange(300, 600)), fingerprint="validation"),
        load_test=lambda: beats,
        protocol="beat-random",
        badge="beat-random",
    )


def arm_of(name: str) -> Arm:
    torch.manual_seed(7)
    spec = EncoderSpec(name=name, options=SMALL.get(name, {}))
    encoder = models.build(spec)
    encoder(torch.rand(16, 1, 187))
    return Arm(name="transfer", spec=spec, checkpoint=checkpoint_of(spec, encoder), origin="a.pt")


def same(one: Trained, other: Trained) -> bool:
    weights = weights_of(other.model)
    return one.curve == other.curve and all(torch.equal(w, weights[key]) for key, w in weights_of(one.model).items())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_bit_is_that_of_the_run_without(schedule: str, head: str, precision: str, split: Split) -> None:
    arm, machine = arm_of("resnet1d"), Machine(precision=precision)  # pyright: ignore[reportArgumentType]
    recipe, shelf = replace(RECIPE, schedule=schedule, head=head), Counting()
    cached = train(arm, split, recipe, 0, CONTEXT, machine, shelf=shelf)
    assert same(cached, train(arm, split, recipe, 0, CONTEXT, machine, shelf=None))
    boundaries = {"frozen": 1, "top": 1, "lp_ft": 1, "gradual": 5, "chain_thaw": 1}
    assert len(shelf.kept) == 2 * boundaries.get(schedule, 0)


@pytest.mark.parametrize("name", models.ENCODERS)
@pytest.mark.parametrize("schedule", ["frozen", "gradual"])
def test_every_encoder_can_be_cut_between_its_steps(schedule: str, name: str, split: Split) -> None:
    arm, recipe = arm_of(name), replace(RECIPE, schedule=schedule, average=0.5)
    shelf = Counting()
    cached = train(arm, split, recipe, 0, CONTEXT, Machine(), shelf=shelf)
    whole = train(arm, split, recipe, 0, CONTEXT, Machine(), shelf=None)
    assert shelf.kept
    assert [epoch["macro_recall"] for epoch in cached.curve] == pytest.approx(
        [epoch["macro_recall"] for epoch in whole.curve], abs=1e-6
    )
    weights = weights_of(whole.model)
    assert all(torch.allclose(w, weights[key], atol=1e-2) for key, w in weights_of(cached.model).items())


@pytest.mark.parametrize("name", ["tsai:FCNPlus", "timm:resnet18"])
def test_a_library_encoder_is_cut_after_its_end_alone(name: str, split: Split) -> None:
    spec = models.parse(name)
    model = Classifier(models.build(spec), "linear", 5).eval()
    assert list(model.encoder.steps) == [list(model.encoder.stages)[-1]]
    x = split.train.signal[:2]
    assert torch.equal(model.above(1, model.below(1, x)), model(x))


@pytest.mark.parametrize("name", models.ENCODERS)
def test_below_and_above_any_step_are_the_whole(name: str) -> None:
    model = Classifier(models.build(EncoderSpec(name=name)), "attention", 5).eval()
    x = torch.rand(3, 1, 187)
    assert list(model.encoder.steps) == list(model.encoder.stages)
    for num_steps in range(len(model.encoder.steps) + 1):
        assert torch.equal(model.above(num_steps, model.below(num_steps, x)), model(x))


def test_runs_of_one_encoder_share_and_others_do_not(split: Split) -> None:
    shelf, arm = Counting(), arm_of("resnet1d")
    frozen = replace(RECIPE, schedule="frozen", epochs=1)
    for seed, lr in ((0, 0.01), (1, 0.001)):
        train(arm, split, replace(frozen, lr=lr), seed, CONTEXT, Machine(), shelf=shelf)
    assert len(shelf.kept) == 2
    train(arm, split, replace(frozen, head="mlp"), 0, CONTEXT, Machine(), shelf=shelf)  # pools alike
    assert len(shelf.kept) == 2
    train(arm, split, replace(frozen, head="attention"), 0, CONTEXT, Machine(), shelf=shelf)
    assert len(shelf.kept) == 4
    scratch = Arm(name="scratch", spec=arm.spec)
    train(scratch, split, frozen, 0, CONTEXT, Machine(), shelf=shelf)
    assert len(shelf.kept) == 6
    fewer = replace(split, train=split.train.select(torch.arange(100)))
    train(arm, fewer, frozen, 0, CONTEXT, Machine(), shelf=shelf)
    assert len(shelf.kept) == 7  # the validation part is the same


@pytest.mark.parametrize(
    "change",
    [{"augment": "always"}, {"batchnorm": "moving"}, {"schedule": "full"}, {"schedule": "gradual", "epochs": 4}],
    ids=str,
)
def test_nothing_is_kept_where_it_would_not_be_the_same_or_not_worth_it(
    change: dict[str, str | int], split: Split
) -> None:
    shelf = Counting()
    recipe = replace(RECIPE, **{"schedule": "frozen", "thaw_start": 0.2, **change})  # pyright: ignore
    train(arm_of("resnet1d"), split, recipe, 0, CONTEXT, Machine(), shelf=shelf)
    assert shelf.kept == {}


def test_what_is_too_large_is_computed_anew(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "MOST_BYTES", 100)
    shelf = Counting()
    train(arm_of("resnet1d"), split, replace(RECIPE, schedule="top"), 0, CONTEXT, Machine(), shelf=shelf)
    assert shelf.kept == {}


@pytest.mark.parametrize("schedule", ["top", "full"])
@pytest.mark.parametrize("batchnorm", ["stage", "still", "moving"])
def test_statistics_move_where_the_recipe_says(batchnorm: str, schedule: str, split: Split) -> None:
    model = arm_of("resnet1d").build("linear", 5, 0)
    tuning = FineTuning(model, split, replace(RECIPE, schedule=schedule, batchnorm=batchnorm), 0, Machine())
    before = {stage: weights_of(part) for stage, part in model.encoder.stages.items()}
    tuning.before_step(0.0)
    with torch.no_grad():
        tuning.loss(torch.arange(50))
    moved = {
        stage
        for stage, part in model.encoder.stages.items()
        if any(not torch.equal(tensor, before[stage][key]) for key, tensor in weights_of(part).items())
    }
    every = set(model.encoder.stages)
    learns = {"top": {"block4"}, "full": every}[schedule]
    assert moved == {"stage": learns, "still": set(), "moving": every}[batchnorm]


def test_steps_are_frozen_from_the_input_up_to_the_first_that_learns() -> None:
    model = Classifier(models.build(EncoderSpec(name="resnet1d")), "linear", 5)
    optimizer, rates = make_optimizer(model, 0.1), dict.fromkeys(model.stages)
    for learning, expected in ((["head"], 5), (["block2", "head"], 2), (["stem"], 0), (["block4"], 4)):
        set_rates(model, optimizer, rates | dict.fromkeys(learning, 0.1))
        assert frozen_steps(model) == expected
    set_rates(model, optimizer, rates | {"block3": {"norm_bias": 0.1}})
    assert frozen_steps(model) == 3


def test_a_map_comes_back_channels_last() -> None:
    tensor = torch.rand(10, 3, 1, 7).contiguous(memory_format=torch.channels_last)
    taken = Rows(tensor)[torch.tensor([3, 1])]
    assert torch.equal(taken, tensor[[3, 1]])
    assert taken.is_contiguous(memory_format=torch.channels_last)
    tokens = torch.rand(10, 4, 3)
    assert torch.equal(Rows(tokens)[torch.tensor([3, 1])], tokens[[3, 1]])
