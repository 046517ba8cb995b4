from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import models
from models.cnn2d import Cnn2d, SqueezeExcite, plan_strides
from models.encoder import EncoderSpec, Option
from models.heads import Classifier
from models.imaging import IMAGES
from models.params import count_parameters, make_optimizer, set_rates

CHOICES = list(product(IMAGES, Cnn2d.dimensions["block"].values, Cnn2d.dimensions["norm"].values))


def build(num_leads: int = 1, num_samples: int = 187, **options: Option) -> Cnn2d:
    return seeded(EncoderSpec(name="cnn2d", num_leads=num_leads, num_samples=num_samples, options=options))


def seeded(spec: EncoderSpec) -> Cnn2d:
    torch.manual_seed(0)
    return Cnn2d(spec)


@pytest.mark.parametrize(("image", "block", "norm"), CHOICES)
def test_every_parameter_takes_a_gradient(image: str, block: str, norm: str) -> None:
    encoder = build(2, image=image, block=block, norm=norm, width=16, depth=2)
    tokens = encoder.tokens(torch.rand(3, 2, 187))
    assert tokens.shape == (3, encoder.num_tokens, encoder.dim)
    assert tokens.isfinite().all()
    (tokens * torch.randn_like(tokens)).sum().backward()
    gradients = {name: parameter.grad for name, parameter in encoder.named_parameters()}
    assert [
        name for name, grad in gradients.items() if grad is None or not grad.isfinite().all() or not grad.any()
    ] == []


@pytest.mark.parametrize(("image", "block"), list(product(IMAGES, Cnn2d.dimensions["block"].values)))
def test_stages_cover_every_parameter(image: str, block: str) -> None:
    encoder = build(image=image, block=block, width=16, depth=4)
    assert list(encoder.stages) == ["stem", "block1", "block2", "block3", "block4"]
    assert len(list(encoder.covered_parameters())) == len(list(encoder.parameters()))
    assert all(key.startswith("parts.") for key in encoder.state_dict())


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("num_samples", [32, 100])
def test_other_lengths(num_samples: int, image: str) -> None:
    encoder = build(num_samples=num_samples, image=image, width=8)
    features = encoder.eval()(torch.rand(2, 1, num_samples))
    assert features.shape == (2, encoder.dim) == (2, 24)
    assert not torch.allclose(features[0], features[1])


@pytest.mark.parametrize(
    ("size", "depth", "last", "strides"),
    [
        ((16, 12), 3, (4, 3), [1, 2, 2, 1]),
        ((16, 12), 1, (4, 3), [2, 2]),
        ((48, 48), 2, (6, 6), [2, 2, 2]),
        ((48, 48), 3, (3, 3), [2, 2, 2, 2]),
        ((48, 48), 4, (3, 3), [1, 2, 2, 2, 2]),
        ((17, 47), 3, (3, 6), [1, 2, 2, 2]),
        ((7, 5), 3, (4, 3), [1, 2, 1, 1]),
        ((2, 1), 2, (2, 1), [1, 1, 1]),
    ],
)
def test_where_the_image_is_halved(
    size: tuple[int, int], depth: int, last: tuple[int, int], strides: list[int]
) -> None:
    assert plan_strides(size, depth) == (last, strides)


@settings(max_examples=20, deadline=None)
@given(num_samples=st.integers(1, 400), depth=st.integers(1, 5), image=st.sampled_from(list(IMAGES)))
def test_it_says_how_many_tokens_it_makes(num_samples: int, depth: int, image: str) -> None:
    encoder = build(num_samples=num_samples, image=image, depth=depth, width=8).eval()
    assert encoder.tokens(torch.rand(1, 1, num_samples)).shape == (1, encoder.num_tokens, encoder.dim)


def test_dropout_acts_in_training_alone() -> None:
    encoder, x = build(dropout=0.3, norm="group", width=8), torch.rand(4, 1, 187)
    assert not torch.allclose(encoder(x), encoder(x))
    encoder.eval()
    assert torch.equal(encoder(x), encoder(x))
    without = build(dropout=0.0, norm="group", width=8)
    assert torch.equal(without(x), without(x))
    assert torch.equal(encoder(x), without.eval()(x))


def test_a_frozen_stage_keeps_its_bits() -> None:
    encoder = build(norm="batch", block="se", dropout=0.3, width=8)
    model = Classifier(encoder, "linear", num_classes=5)
    optimizer = make_optimizer(model, weight_decay=0.1)
    frozen = ("stem", "block1", "block2")
    set_rates(model, optimizer, {stage: None if stage in frozen else 0.01 for stage in model.stages})
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.rand(6, 1, 187)).square().sum().backward()
        optimizer.step()
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert not [key for key in changed if key.split(".")[2] in frozen]
    assert {"encoder.parts.block3.branch.0.weight", "encoder.parts.block3.branch.1.running_mean"} <= changed


@pytest.mark.parametrize("option", ["image", "block", "norm", "width", "depth"])
def test_each_value_of_an_option_makes_another_encoder(option: str) -> None:
    x = torch.rand(2, 1, 187)
    specs = [EncoderSpec(name="cnn2d", options={option: value}) for value in Cnn2d.dimensions[option].values]
    means = [seeded(spec).eval()(x).mean().item() for spec in specs]
    assert len(set(means)) == len(means)


def test_a_beat_in_eval_does_not_depend_on_its_batch() -> None:
    for block in Cnn2d.dimensions["block"].values:
        encoder, x = build(block=block).eval(), torch.rand(4, 1, 187)
        torch.testing.assert_close(encoder(x)[1:2], encoder(x[1:2]), atol=1e-5, rtol=1e-4)


def test_squeeze_and_excitation_scales_whole_channels_by_what_all_hold() -> None:
    excite, x = SqueezeExcite(8), torch.rand(2, 8, 4, 3) + 0.1
    gate = excite(x) / x
    torch.testing.assert_close(gate, gate[:, :, :1, :1].expand_as(gate))
    assert gate.min() > 0
    assert gate.max() < 1
    changed = x.clone()
    changed[:, 0] += 1
    assert not torch.allclose((excite(changed) / changed)[:, 1:], gate[:, 1:])


def test_the_default_is_small_and_folds() -> None:
    encoder = build()
    assert 100_000 <= count_parameters(encoder) <= 300_000
    assert (encoder.image.size, encoder.num_tokens, encoder.dim) == ((16, 12), 12, 96)
    assert torch.equal(encoder(torch.ones(1, 1, 187)), build(image="fold")(torch.ones(1, 1, 187)))


@pytest.mark.parametrize(
    "options",
    [
        {"width": 30},
        {"width": 4},
        {"depth": 0},
        {"image": "photo"},
        {"block": "dense"},
        {"norm": "layer"},
        {"dropout": 1.0},
    ],
)
def test_an_impossible_option_is_refused(options: dict[str, Option]) -> None:
    with pytest.raises(ValueError, match=r"^cnn2d"):
        models.build(EncoderSpec(name="cnn2d", options=options))
