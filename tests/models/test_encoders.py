from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import models
from models.checkpoint import attach, load, save
from models.encoder import Encoder, EncoderSpec
from models.params import count_parameters
from tests.samples import checkpoint_of

OTHER_LENGTH = {"resnet1d": 100, "transformer1d": 110}


def build(name: str, num_leads: int = 1, num_samples: int = 187) -> Encoder:
    torch.manual_seed(0)
    return models.build(EncoderSpec(name=name, num_leads=num_leads, num_samples=num_samples))


def test_every_encoder_has_another_length_to_test() -> None:
    assert OTHER_LENGTH.keys() == models.ENCODERS.keys()
    assert models.DEFAULT_ENCODER in models.ENCODERS


@pytest.mark.parametrize("num_leads", [1, 2])
@pytest.mark.parametrize("other_length", [False, True])
@pytest.mark.parametrize("name", models.ENCODERS)
def test_shapes_and_gradients(name: str, other_length: bool, num_leads: int) -> None:
    num_samples = OTHER_LENGTH[name] if other_length else 187
    encoder = build(name, num_leads, num_samples)
    x = torch.rand(3, num_leads, num_samples)
    tokens = encoder.tokens(x)
    assert tokens.shape == (3, encoder.num_tokens, encoder.dim)
    features = encoder(x)
    assert features.shape == (3, encoder.dim)
    (features * torch.randn_like(features)).sum().backward()
    without = [key for key, p in encoder.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []
    for stage, part in encoder.stages.items():
        assert any(p.grad is not None and p.grad.any() for p in part.parameters()), stage


@pytest.mark.parametrize("name", models.ENCODERS)
def test_features_depend_on_every_lead_and_on_the_order_of_time(name: str) -> None:
    encoder = build(name, num_leads=2).eval()
    x = torch.rand(2, 2, 187)
    features = encoder(x)
    for lead in (0, 1):
        changed = x.clone()
        changed[:, lead] += 0.5 * torch.rand(187)
        assert not torch.allclose(encoder(changed), features)
    assert not torch.allclose(encoder(x.flip(-1)), features)


@pytest.mark.parametrize("name", models.ENCODERS)
def test_a_beat_in_eval_does_not_depend_on_its_batch(name: str) -> None:
    encoder, x = build(name).eval(), torch.rand(4, 1, 187)
    torch.testing.assert_close(encoder(x)[1:2], encoder(x[1:2]), atol=1e-5, rtol=1e-4)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 300))
def test_resnet_says_how_many_tokens_it_makes(num_samples: int) -> None:
    options = {"width": 2, "kernel": 3}
    encoder = models.build(EncoderSpec(name="resnet1d", num_samples=num_samples, options=options)).eval()
    assert encoder.tokens(torch.rand(1, 1, num_samples)).shape[1] == encoder.num_tokens


@pytest.mark.parametrize("name", models.ENCODERS)
def test_stages_cover_every_parameter_exactly_once(name: str) -> None:
    encoder = build(name)
    held = [id(parameter) for part in encoder.stages.values() for parameter in part.parameters()]
    assert len(held) == len(set(held))
    assert set(held) == {id(parameter) for parameter in encoder.parameters()}
    covered = list(encoder.covered_parameters())
    assert [id(parameter) for *_, parameter in covered] == held
    assert list(dict.fromkeys(stage for stage, *_ in covered)) == list(encoder.stages)


class Fake(Encoder):
    """Three layers, of which `choose` makes stages."""

    def __init__(self, choose: Callable[["Fake"], Mapping[str, nn.Module]]) -> None:
        super().__init__()
        self.spec, self.dim, self.num_tokens = EncoderSpec(name="fake"), 3, 1
        self.first, self.second, self.third = nn.Linear(187, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.choose = choose

    @property
    def stages(self) -> Mapping[str, nn.Module]:
        return self.choose(self)

    def tokens(self, x: Tensor) -> Tensor:
        return self.third(self.second(self.first(x)))


def test_whole_stages_are_accepted() -> None:
    fake = Fake(lambda f: {"one": nn.Sequential(f.first, f.second), "two": f.third})
    assert [stage for stage, *_ in fake.covered_parameters()] == ["one"] * 4 + ["two"] * 2


def test_a_parameter_in_no_stage_is_an_error() -> None:
    fake = Fake(lambda f: {"one": f.first, "three": f.third})
    with pytest.raises(ValueError, match=r"no stage holds second\.weight, second\.bias"):
        list(fake.covered_parameters())


def test_a_parameter_in_two_stages_is_an_error() -> None:
    fake = Fake(lambda f: {"one": nn.Sequential(f.first, f.second), "two": nn.Sequential(f.second, f.third)})
    with pytest.raises(ValueError, match="weight is in stages one and two"):
        list(fake.covered_parameters())


@pytest.mark.parametrize("name", models.ENCODERS)
def test_rebuilt_from_its_file_with_the_same_output(name: str, tmp_path: Path) -> None:
    encoder, x = build(name, num_leads=2), torch.rand(5, 2, 187)
    encoder(x)  # moves BatchNorm's running statistics away from where they start
    save(tmp_path / "a.pt", checkpoint_of(encoder.spec, encoder))
    torch.manual_seed(1)
    rebuilt, loaded = attach(load(tmp_path / "a.pt"), "a.pt")
    assert rebuilt.spec == encoder.spec
    assert loaded.num_parameters == loaded.total_parameters == count_parameters(encoder)
    assert torch.equal(rebuilt.eval()(x), encoder.eval()(x))


def test_options_change_what_is_built() -> None:
    wide = models.build(EncoderSpec(name="resnet1d", options={"width": 8, "kernel": 3}))
    assert wide.dim == 32
    deep = models.build(EncoderSpec(name="transformer1d", options={"depth": 2, "dim": 32}))
    assert (list(deep.stages), deep.dim) == (["embed", "block1", "block2", "norm"], 32)


def test_an_unknown_architecture_lists_the_choices() -> None:
    with pytest.raises(ValueError, match=f"unknown architecture 'alexnet'; choose from {', '.join(models.ENCODERS)}"):
        models.build(EncoderSpec(name="alexnet"))


@pytest.mark.parametrize(("name", "option"), [("resnet1d", "width"), ("transformer1d", "depth")])
def test_an_unknown_option_lists_the_choices(name: str, option: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} has no option 'colour'; choose from .*\b{option}\b"):
        models.build(EncoderSpec(name=name, options={"colour": 1}))


@pytest.mark.parametrize(
    ("name", "num_samples", "options"),
    [
        ("resnet1d", 187, {"kernel": 4}),
        ("resnet1d", 187, {"kernel": -1}),
        ("resnet1d", 187, {"width": 0}),
        ("transformer1d", 100, {}),
        ("transformer1d", 187, {"patch": 10}),
        ("transformer1d", 187, {"heads": 3}),
        ("transformer1d", 187, {"patch": 0}),
        ("transformer1d", 187, {"heads": 0}),
        ("transformer1d", 187, {"depth": -1}),
    ],
)
def test_an_impossible_size_is_refused(name: str, num_samples: int, options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=name):
        models.build(EncoderSpec(name=name, num_samples=num_samples, options=options))


def test_the_default_encoder_is_small() -> None:
    assert 100_000 <= count_parameters(build("resnet1d")) <= 250_000
