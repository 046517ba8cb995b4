from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import models
from models.cost import by_part, count, multiply_adds
from models.encoder import EncoderSpec

BATCH, TIME = 2, 10
RECURRENCE = BATCH * TIME * 16 * (8 + 16)
"""One gate of 16 hidden numbers that see 8 inputs and the hidden numbers before."""


class Attention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(x, x, x)


class Recurrence(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "linear": (lambda: nn.Linear(8, 16), (3, 8), 3 * 8 * 16),
    "linear on tokens": (lambda: nn.Linear(8, 16), (3, 5, 8), 3 * 5 * 8 * 16),
    "conv": (lambda: nn.Conv1d(4, 6, 5, stride=2, padding=2), (2, 4, 20), 2 * 10 * 6 * 4 * 5),
    "conv 2d": (lambda: nn.Conv2d(4, 6, (1, 5)), (2, 4, 1, 20), 2 * 16 * 6 * 4 * 5),
    "depthwise": (lambda: nn.Conv1d(8, 8, 5, groups=8, padding=2), (2, 8, 20), 2 * 20 * 8 * 5),
    "two groups": (lambda: nn.Conv1d(8, 4, 3, groups=2, padding=1), (2, 8, 20), 2 * 20 * 4 * 4 * 3),
    "transposed": (lambda: nn.ConvTranspose1d(8, 4, 3, stride=2), (2, 8, 20), 2 * 20 * 8 * 4 * 3),
    "attention": (Attention, (2, 4, 17, 16), 2 * 2 * 4 * 17 * 17 * 16),
    "lstm": (lambda: Recurrence(nn.LSTM(8, 16, batch_first=True)), (BATCH, TIME, 8), 4 * RECURRENCE),
    "gru": (lambda: Recurrence(nn.GRU(8, 16, batch_first=True)), (BATCH, TIME, 8), 3 * RECURRENCE),
    "lstm both ways": (
        lambda: Recurrence(nn.LSTM(8, 16, batch_first=True, bidirectional=True)),
        (BATCH, TIME, 8),
        2 * 4 * RECURRENCE,
    ),
    "transformer": (
        lambda: nn.TransformerEncoderLayer(16, 2, 32, batch_first=True),
        (2, 5, 16),
        2 * (5 * 16 * 48 + 2 * 5 * 5 * 16 + 5 * 16 * 16 + 2 * 5 * 16 * 32),
    ),
    "norm and activation": (lambda: nn.Sequential(nn.BatchNorm1d(8), nn.GELU()), (3, 8), 0),
}


@pytest.mark.parametrize("name", CASES)
def test_forward_is_what_a_hand_counts(name: str) -> None:
    make, shape, expected = CASES[name]
    assert multiply_adds(make(), torch.rand(shape)) == expected


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_backward_costs_two_forwards_where_the_input_has_a_gradient_too(name: str, precision: torch.dtype) -> None:
    make, shape, forward = CASES[name]
    module, x = make(), torch.rand(shape, requires_grad=True)

    def step() -> None:
        with torch.autocast("cpu", precision, enabled=precision is torch.bfloat16):
            output = module(x)
        output.float().sum().backward()

    # a recurrence begins with hidden numbers that take no gradient
    unneeded = BATCH * 3 * 16 * 16 if name == "gru" else 0
    assert count(step) == 3 * forward - unneeded
    assert x.grad is not None


def test_without_a_gradient_of_the_input_the_first_layer_costs_less() -> None:
    layers = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4))
    assert multiply_adds(layers, torch.rand(3, 8), backward=True) == 3 * (2 * 8 * 16 + 3 * 16 * 4)


@pytest.mark.parametrize("name", ["linear", "attention", "lstm", "gru", "transformer"])
def test_inference_mode_hides_nothing(name: str) -> None:
    make, shape, expected = CASES[name]
    module, x = make().eval(), torch.rand(shape)

    def run() -> None:
        with torch.inference_mode():
            module(x)

    assert count(run) == expected


def test_einsum_and_matmul_count() -> None:
    a, b = torch.rand(2, 3, 4), torch.rand(2, 4, 5)
    assert count(lambda: a @ b) == count(lambda: torch.einsum("bij,bjk->bik", a, b)) == 2 * 3 * 4 * 5


def test_counting_leaves_no_trace() -> None:
    module = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    module[1].eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state, fast = torch.get_rng_state(), torch.backends.mha.get_fastpath_enabled()
    multiply_adds(module, torch.ones(3, 8), backward=True)
    assert [part.training for part in module.modules()] == [True, True, False, True]
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.backends.mha.get_fastpath_enabled() == fast
    with pytest.raises(RuntimeError):
        multiply_adds(module, torch.ones(3, 7))
    assert module.training and torch.backends.mha.get_fastpath_enabled() == fast


@pytest.mark.parametrize("name", models.ENCODERS)
def test_the_stages_of_an_encoder_do_all_of_its_work(name: str) -> None:
    encoder, x = models.build(EncoderSpec(name=name)).eval(), torch.rand(2, 1, 187)
    costs = by_part(encoder.stages, lambda: encoder(x))
    assert list(costs) == list(encoder.stages)
    assert sum(cost.multiply_adds for cost in costs.values()) == multiply_adds(encoder, x)
    assert multiply_adds(encoder, x) == 2 * multiply_adds(encoder, x[:1])
    assert {cost.shape[0] for cost in costs.values()} == {2}


def test_a_part_called_twice_counts_twice_and_a_group_counts_what_is_in_it() -> None:
    shared, one, two, unused = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 8), nn.Linear(4, 4)
    x = torch.rand(1, 4)
    parts = {"shared": shared, "group": nn.ModuleList([one, two]), "unused": unused}
    costs = by_part(parts, lambda: two(one(shared(shared(x)))))
    assert costs == {"shared": ((1, 4), 2 * 16), "group": ((1, 8), 16 + 32)}
