import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import models
from models.checkpoint import attach, load, save
from models.encoder import Dimension, Encoder, EncoderSpec, Option, Step
from models.heads import Classifier
from models.params import count_parameters, make_optimizer, set_rates
from models.recurrent import Recurrent
from tests.samples import checkpoint_of

OTHER_LENGTH = dict.fromkeys(models.ENCODERS, 100) | {"transformer1d": 110}


def build(
    name: str, num_leads: int = 1, num_samples: int = 187, options: Mapping[str, Option] = MappingProxyType({})
) -> Encoder:
    torch.manual_seed(0)
    return models.build(EncoderSpec(name=name, num_leads=num_leads, num_samples=num_samples, options=dict(options)))


def test_the_default_encoder_is_one_of_them() -> None:
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


@pytest.mark.parametrize("name", models.ENCODERS)
def test_every_value_that_a_search_draws_can_be_built(name: str) -> None:
    for option, dimension in models.find(name).dimensions.items():
        assert dimension.default in dimension.values, option
        for value in dimension.values:
            assert dimension.accepts(value), (option, value)
            encoder = build(name, options={option: value}).eval()
            assert encoder(torch.rand(2, 1, 187)).shape == (2, encoder.dim), (option, value)


@pytest.mark.parametrize("name", models.ENCODERS)
def test_every_option_changes_what_is_built(name: str) -> None:
    x = torch.rand(2, 1, 187)
    features = build(name)(x)  # in training, where dropout shows too
    for option, dimension in models.find(name).dimensions.items():
        for value in set(dimension.values) - {dimension.default}:
            changed = build(name, options={option: value})(x)
            assert changed.shape != features.shape or not torch.allclose(changed, features), (option, value)


@pytest.mark.parametrize("name", models.ENCODERS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_size_is_built_as_it_says_or_refused_in_its_name(name: str, data: st.DataObject) -> None:
    options = {
        option: data.draw(any_value_of(dimension), label=option)
        for option, dimension in models.find(name).dimensions.items()
    }
    num_samples = data.draw(st.sampled_from((100, 110, 187)) | st.integers(1, 300), label="num_samples")
    try:
        encoder = build(name, num_samples=num_samples, options=options).eval()
    except ValueError as error:
        assert str(error).startswith(name)
        return
    assert encoder.tokens(torch.rand(2, 1, num_samples)).shape == (2, encoder.num_tokens, encoder.dim)


def any_value_of(dimension: Dimension) -> st.SearchStrategy[Option]:
    drawn = st.sampled_from(dimension.values)
    return drawn | st.integers(1, 12) if type(dimension.default) is int else drawn


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

    @property
    def steps(self) -> Mapping[str, Step]:
        return {"all": lambda x: self.third(self.second(self.first(x)))}


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
def test_freezing_up_to_any_stage_is_exact(name: str) -> None:
    """What is frozen keeps every bit, BatchNorm's statistics too; every other stage learns."""
    x, labels = torch.rand(6, 1, 187), torch.arange(6) % 5
    names = list(Classifier(build(name), "linear", 5).stages)
    for depth in range(1, len(names)):
        model = Classifier(build(name), "linear", 5)
        before = states(model)
        optimizer = make_optimizer(model, weight_decay=0.1)
        set_rates(model, optimizer, {stage: None if stage in names[:depth] else 1e-3 for stage in names})
        for _ in range(2):
            optimizer.zero_grad()
            functional.cross_entropy(model(x), labels).backward()
            optimizer.step()
        for stage, after in states(model).items():
            changed = {key for key, value in after.items() if not torch.equal(value, before[stage][key])}
            if stage in names[:depth]:
                assert changed == set(), (depth, stage)
            else:
                learn = {key for key, _ in model.stages[stage].named_parameters()}
                track = {key for key in after if key.endswith("num_batches_tracked")}
                assert changed & learn, (depth, stage)
                assert track <= changed, (depth, stage)


def states(model: Classifier) -> dict[str, dict[str, Tensor]]:
    """Copies of the parameters and buffers of each stage."""
    return {
        stage: {key: value.detach().clone() for key, value in [*part.named_parameters(), *part.named_buffers()]}
        for stage, part in model.stages.items()
    }


@pytest.mark.parametrize("name", models.ENCODERS)
def test_the_spec_alone_rebuilds(name: str) -> None:
    """Through JSON, with every option written out and none at its default where there is a choice."""
    dimensions = models.find(name).dimensions
    options = {option: next(v for v in d.values if v != d.default) for option, d in dimensions.items()}
    for chosen in ({}, options):
        encoder, x = build(name, num_leads=2, options=chosen).eval(), torch.rand(2, 2, 187)
        spec = EncoderSpec(**json.loads(json.dumps(encoder.spec.to_json())))
        assert spec == encoder.spec
        rebuilt = models.build(spec).eval()
        rebuilt.load_state_dict(encoder.state_dict())
        assert torch.equal(rebuilt(x), encoder(x))


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
        ("inception1d", 187, {"kernel": 12}),
        ("tcn1d", 187, {"kernel": 4}),
        ("tcn1d", 187, {"depth": 7}),
        ("tcn1d", 187, {"norm": "layer"}),
        ("tcn1d", 187, {"causal": 1}),
        ("cnn_transformer1d", 187, {"kernel": 4}),
        ("cnn_transformer1d", 187, {"heads": 3}),
        ("gru", 187, {"bidirectional": "yes"}),
        ("lstm", 187, {"width": 0.5}),
    ],
)
def test_an_impossible_size_is_refused(name: str, num_samples: int, options: dict[str, Option]) -> None:
    with pytest.raises(ValueError, match=rf"^{name}\b"):
        models.build(EncoderSpec(name=name, num_samples=num_samples, options=options))


@pytest.mark.parametrize("name", models.ENCODERS)
def test_every_encoder_is_small(name: str) -> None:
    assert 90_000 <= count_parameters(build(name)) <= 300_000


def test_a_command_line_names_an_architecture_and_its_options() -> None:
    assert models.parse("resnet1d") == EncoderSpec(name="resnet1d")
    assert models.parse("resnet1d@") == EncoderSpec(name="resnet1d")
    spec = models.parse("resnet1d@width=48,kernel=7", num_leads=2, num_samples=100)
    assert spec == EncoderSpec(name="resnet1d", num_leads=2, num_samples=100, options={"width": 48, "kernel": 7})
    assert models.parse("tcn1d@causal=true,norm=none").options == {"causal": True, "norm": "none"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("alexnet@width=3", "unknown architecture 'alexnet'; choose from resnet1d, "),
        ("", "unknown architecture ''; choose from resnet1d, "),
        ("pytorch:resnet18", "unknown architecture 'pytorch:resnet18'; choose from resnet1d, "),
        ("resnet1d@colour=3", "resnet1d has no option 'colour'; choose from width, kernel"),
        ("resnet1d@width=wide", "resnet1d: option width cannot be 'wide'; choose from, or near, 16, 24"),
        ("resnet1d@width=1.5", "resnet1d: option width cannot be 1.5; choose from, or near, 16, 24"),
        ("resnet1d@width=", "resnet1d: option width cannot be ''; choose from, or near, 16, 24"),
        ("resnet1d@width=[48]", r"resnet1d: option width cannot be \[48\]; choose from, or near, 16, 24"),
        ("tcn1d@norm=true", "tcn1d: option norm cannot be True; choose from, or near, group, batch, none"),
        ("resnet1d@width", "an option of an architecture reads NAME=VALUE, not 'width'"),
        ("resnet1d@kernel=7,width:48", "an option of an architecture reads NAME=VALUE, not 'width:48'"),
    ],
)
def test_a_command_line_that_names_none_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        models.parse(text)


@pytest.mark.parametrize("name", models.ENCODERS)
def test_a_label_can_be_typed_again(name: str) -> None:
    for option, dimension in models.find(name).dimensions.items():
        for value in dimension.values:
            spec = EncoderSpec(name=name, options={option: value})
            assert models.parse(spec.label) == spec


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("causal", [False, True])
def test_a_causal_tcn_looks_only_back(causal: bool, norm: str) -> None:
    encoder, x = build("tcn1d", options={"causal": causal, "norm": norm}).eval(), torch.rand(2, 1, 187)
    changed = x.clone()
    changed[..., 80:] += 1.0
    tokens, others = encoder.tokens(x), encoder.tokens(changed)
    assert torch.allclose(tokens[:, :20], others[:, :20], atol=1e-5) == causal  # token t is of sample 4 t
    assert not torch.allclose(tokens[:, 20:], others[:, 20:], atol=1e-5)


def test_batch_normalisation_is_in_a_tcn_only_by_choice() -> None:
    def kinds(options: Mapping[str, Option]) -> set[type[nn.Module]]:
        parts = list(build("tcn1d", options=options).modules())
        return {kind for kind in (nn.BatchNorm2d, nn.GroupNorm) if any(isinstance(part, kind) for part in parts)}

    assert kinds({}) == kinds({"norm": "group"}) == {nn.GroupNorm}
    assert kinds({"norm": "batch"}) == {nn.BatchNorm2d}
    assert kinds({"norm": "none"}) == set()


@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_the_mean_of_recurrent_tokens_is_attention_pooling(name: str) -> None:
    encoder = build(name).eval()
    assert isinstance(encoder, Recurrent)
    hidden: list[Tensor] = []
    encoder.pool.register_forward_pre_hook(lambda _, inputs: hidden.append(inputs[0]))
    x = torch.rand(3, 1, 187)
    torch.testing.assert_close(encoder(x), hidden[0].mean(1))  # a new query weighs all alike
    nn.init.normal_(encoder.pool.query)
    weight = (hidden[0] @ encoder.pool.query).softmax(1)
    torch.testing.assert_close(encoder(x), (hidden[0] * weight[..., None]).sum(1))


@pytest.mark.parametrize("name", ["gru", "lstm"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_recurrent_network_reads_one_way_or_both(name: str, bidirectional: bool) -> None:
    encoder = build(name, options={"bidirectional": bidirectional, "width": 8, "depth": 3}).eval()
    assert list(encoder.stages) == ["embed", "layer1", "layer2", "layer3", "pool"]
    assert encoder.dim == (16 if bidirectional else 8)
    x = torch.rand(2, 1, 187)
    changed = x.clone()
    changed[..., 110:] += 1.0
    earlier = slice(0, 9)  # windows of 21 samples, the middles 11 apart: the ninth ends before sample 110
    assert torch.allclose(encoder.tokens(x)[:, earlier], encoder.tokens(changed)[:, earlier]) != bidirectional


def test_inception_blocks_halve_time_every_other_time() -> None:
    assert [build("inception1d", options={"depth": depth}).num_tokens for depth in (1, 2, 3, 4, 5)] == [
        47,
        47,
        24,
        24,
        12,
    ]
