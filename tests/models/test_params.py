import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

import models
from models import HEAD
from models.adapters import LowRank
from models.encoder import EncoderSpec
from models.heads import HEADS, Classifier
from models.params import decay_groups, kind_of, make_optimizer, parameter_groups, set_rates

SMALL: dict[str, dict[str, bool | int | float | str]] = {
    "resnet1d": {"width": 4, "kernel": 3},
    "transformer1d": {"dim": 16, "depth": 2},
}
NUM_STAGES = {
    name: len(models.build(EncoderSpec(name=name, options=SMALL.get(name, {}))).stages) for name in models.ENCODERS
}
BOUNDARIES = [(name, number) for name in models.ENCODERS for number in range(NUM_STAGES[name] + 1)]
DECAY = 0.5


def classifier(encoder: str, head: str = "linear") -> Classifier:
    torch.manual_seed(0)
    return Classifier(models.build(EncoderSpec(name=encoder, options=SMALL.get(encoder, {}))), head, 3)


def step(model: Classifier, optimizer: Optimizer, num_steps: int = 3) -> None:
    for seed in range(num_steps):
        torch.manual_seed(seed)
        loss = functional.cross_entropy(model(torch.rand(8, 1, 187)), torch.randint(3, (8,)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def parts(model: Classifier) -> dict[str, nn.Module]:
    return {**model.encoder.stages, HEAD: model.head}


def snapshot(part: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in part.state_dict().items()}


def unchanged(part: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, before[name]) for name, tensor in part.state_dict().items())


def freeze_first(model: Classifier, number: int, rate: float = 0.01) -> dict[str, float | None]:
    return {stage: None if place < number else rate for place, stage in enumerate(model.stages)}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("encoder", models.ENCODERS)
def test_groups_cover_every_parameter_once_and_only_weights_decay(encoder: str, head: str) -> None:
    model = classifier(encoder, head)
    groups = parameter_groups(model, DECAY)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(names)
    assert len({(group["stage"], group["kind"]) for group in groups}) == len(groups)
    assert {group["stage"] for group in groups} == set(model.stages)
    for group in groups:
        owner = {id(parameter) for parameter in parts(model)[group["stage"]].parameters()}
        assert {id(parameter) for parameter in group["params"]} <= owner
        assert group["weight_decay"] == (DECAY if group["kind"] == "weight" else 0)


@pytest.mark.parametrize("encoder", models.ENCODERS)
def test_norms_and_biases_do_not_decay(encoder: str) -> None:
    model = classifier(encoder, "mlp")
    spared = {
        id(parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if name.startswith("bias") or isinstance(module, nn.LayerNorm | nn.BatchNorm1d | nn.BatchNorm2d | nn.GroupNorm)
    }
    for groups in (parameter_groups(model, DECAY), decay_groups(model, DECAY)):
        without = {id(p) for group in groups if group["weight_decay"] == 0 for p in group["params"]}
        assert without == spared
        every = [id(p) for group in groups for p in group["params"]]
        assert sorted(every) == sorted(id(p) for p in model.parameters())


@pytest.mark.parametrize(("encoder", "number"), BOUNDARIES)
def test_frozen_means_frozen(encoder: str, number: int) -> None:
    model = classifier(encoder)
    optimizer = make_optimizer(model, DECAY)
    before = {stage: snapshot(part) for stage, part in parts(model).items()}
    set_rates(model, optimizer, freeze_first(model, number))
    step(model, optimizer)
    for place, (stage, part) in enumerate(parts(model).items()):
        assert unchanged(part, before[stage]) is (place < number), stage
        assert part.training is (place >= number)
        for parameter in part.parameters():
            assert (parameter in optimizer.state) is (place >= number)
            assert (parameter.grad is None) is (place < number)
            assert parameter.requires_grad is (place >= number)


@pytest.mark.parametrize("encoder", models.ENCODERS)
def test_freezing_again_drops_the_optimizer_state_and_stands_still(encoder: str) -> None:
    model = classifier(encoder)
    optimizer = make_optimizer(model, DECAY)
    set_rates(model, optimizer, freeze_first(model, 0))
    step(model, optimizer)
    first = next(iter(parts(model).values()))
    before = snapshot(first)
    set_rates(model, optimizer, freeze_first(model, 1))
    optimizer.step()  # the gradients of the last step are gone too
    step(model, optimizer)
    assert unchanged(first, before)
    assert not any(parameter in optimizer.state for parameter in first.parameters())


@pytest.mark.parametrize("encoder", models.ENCODERS)
def test_thawing_later_trains_and_adds_no_group(encoder: str) -> None:
    model = classifier(encoder)
    optimizer = make_optimizer(model, DECAY)
    groups = [[id(parameter) for parameter in group["params"]] for group in optimizer.param_groups]
    for number in range(NUM_STAGES[encoder], -1, -1):
        set_rates(model, optimizer, freeze_first(model, number))
        before = {stage: snapshot(part) for stage, part in parts(model).items()}
        step(model, optimizer, 1)
        still = [stage for stage, part in parts(model).items() if unchanged(part, before[stage])]
        assert still == list(parts(model))[:number]
        assert [[id(parameter) for parameter in group["params"]] for group in optimizer.param_groups] == groups


def test_frozen_running_statistics_stand_still_after_train_is_called() -> None:
    model = classifier("resnet1d")
    optimizer = make_optimizer(model, DECAY)
    set_rates(model, optimizer, freeze_first(model, 2))
    before = snapshot(model.encoder.stages["block1"])
    model.train()
    step(model, optimizer)
    assert unchanged(model.encoder.stages["block1"], before)


def test_each_stage_learns_at_its_own_rate() -> None:
    model = classifier("resnet1d")
    optimizer = make_optimizer(model, DECAY)
    assert {group["lr"] for group in optimizer.param_groups} == {0.0}
    rates = {stage: 0.001 * number for number, stage in enumerate(model.stages, start=1)}
    set_rates(model, optimizer, rates)
    assert all(group["lr"] == rates[group["stage"]] for group in optimizer.param_groups)


def test_at_rate_zero_nothing_moves_but_the_stage_is_not_frozen() -> None:
    model = classifier("transformer1d")
    optimizer = make_optimizer(model, DECAY)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    set_rates(model, optimizer, freeze_first(model, 0, rate=0.0))
    step(model, optimizer)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("change", [{"block9": 0.1}, {"stem": "gone"}])
def test_wrong_stage_names_are_refused(change: dict[str, float | str]) -> None:
    model = classifier("resnet1d")
    optimizer = make_optimizer(model, DECAY)
    rates = freeze_first(model, 0)
    for stage, rate in change.items():
        if isinstance(rate, float):
            rates[stage] = rate
        else:
            del rates[stage]
    with pytest.raises(ValueError, match=r"rates for stages .* but the model has .*'stem'"):
        set_rates(model, optimizer, rates)


@pytest.mark.parametrize("encoder", models.ENCODERS)
@pytest.mark.parametrize("kinds", [("norm_weight", "norm_bias"), ("bias", "norm_bias"), ("weight",)], ids=str)
def test_one_kind_of_parameter_learns_while_the_others_keep_every_bit(kinds: tuple[str, ...], encoder: str) -> None:
    model = classifier(encoder)
    optimizer = make_optimizer(model, DECAY)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    rates = {stage: dict.fromkeys(kinds, 0.01) for stage in model.stages}
    set_rates(model, optimizer, rates)
    step(model, optimizer)
    learning = {
        id(parameter) for group in optimizer.param_groups for parameter in group["params"] if group["kind"] in kinds
    }
    assert learning
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad is (id(parameter) in learning)
        assert (parameter in optimizer.state) is (id(parameter) in learning)
        assert torch.equal(parameter, before[name]) is (id(parameter) not in learning), name


def test_kinds_are_told_by_the_module_that_holds_them() -> None:
    assert kind_of(nn.Conv1d(1, 1, 1), "weight") == "weight"
    assert kind_of(nn.GRU(1, 1), "bias_ih_l0") == "bias"
    assert [kind_of(nn.BatchNorm1d(1), name) for name in ("weight", "bias")] == ["norm_weight", "norm_bias"]
    assert kind_of(nn.LayerNorm(1), "weight") == "norm_weight"
    assert kind_of(LowRank(torch.zeros(2, 2), 1), "up") == "adapter"


def test_a_stage_of_which_something_learns_is_not_still() -> None:
    model = classifier("resnet1d")
    optimizer = make_optimizer(model, DECAY)
    set_rates(model, optimizer, dict.fromkeys(model.stages) | {"block1": {"norm_bias": 0.1}, HEAD: 0.1})
    assert model.still == {"stem", "block2", "block3", "block4"}
    assert parts(model)["block1"].training and not parts(model)["block2"].training
