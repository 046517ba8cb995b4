import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import models
from models import stages, timm_nets, torchvision_ops
from models.checkpoint import attach, load, save
from models.encoder import Encoder, EncoderSpec, Option
from models.heads import HEAD, Classifier
from models.params import count_parameters, make_optimizer, set_rates
from tests.samples import checkpoint_of

TOKENS = {
    "tsai:InceptionTimePlus": (187, 128),
    "tsai:FCNPlus": (187, 128),
    "tsai:XceptionTimePlus": (187, 512),
    "tsai:ResNetPlus": (187, 128),
    "tsai:TSTPlus": (187, 128),
    "tsai:TSiTPlus": (187, 128),
    "tsai:LSTMPlus": (1, 100),
    "tsai:XCMPlus": (187, 128),
    "tsai:ConvTranPlus": (187, 16),
    "timm:convnext_atto": (4, 320),
    "timm:resnet18": (4, 512),
    "timm:vit_tiny_patch16_224": (16, 192),
}
STAGES = {
    "tsai:InceptionTimePlus": "inception.0 inception.1 inception.2 shortcut.0 inception.3 inception.4 inception.5 "
    "shortcut.1",
    "tsai:FCNPlus": "convblock1 convblock2 convblock3",
    "tsai:XceptionTimePlus": "xception.0 xception.1 shortcut.0 xception.2 xception.3 shortcut.1",
    "tsai:ResNetPlus": "part0 part1 part2",
    "tsai:TSTPlus": "W_P encoder.layers.0 encoder.layers.1 encoder.layers.2",
    "tsai:TSiTPlus": "linear_proj " + " ".join(f"encoder.encoder.{layer}" for layer in range(6)),
    "tsai:LSTMPlus": "rnn.0",
    "tsai:XCMPlus": "conv2dblock conv2d1x1block conv1dblock conv1d1x1block conv1d",
    "tsai:ConvTranPlus": "embed_layer embed_layer2 attention_layer LayerNorm FeedForward LayerNorm2",
    "timm:convnext_atto": "stem stages.0 stages.1 stages.2 stages.3",
    "timm:resnet18": "conv1 layer1 layer2 layer3 layer4",
    "timm:vit_tiny_patch16_224": " ".join(["patch_embed", *(f"blocks.{block}" for block in range(12)), "norm"]),
}


Options = dict[str, Option]


def build(name: str, num_leads: int = 1, num_samples: int = 187, options: Options | None = None) -> Encoder:
    torch.manual_seed(0)
    return models.build(EncoderSpec(name=name, num_leads=num_leads, num_samples=num_samples, options=options or {}))


def snapshot(part: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in part.state_dict().items()}


def test_every_library_model_is_expected_here() -> None:
    assert TOKENS.keys() == STAGES.keys() == set(models.LIBRARY_MODELS)


@pytest.mark.parametrize(("num_leads", "num_samples"), [(1, 187), (2, 100)])
@pytest.mark.parametrize("name", models.LIBRARY_MODELS)
def test_shapes_gradients_and_stages(name: str, num_leads: int, num_samples: int) -> None:
    encoder = build(name, num_leads, num_samples)
    x = torch.rand(3, num_leads, num_samples)
    before = x.clone()
    tokens = encoder.tokens(x)
    num_tokens, dim = TOKENS[name]
    if num_tokens == 187:
        num_tokens = num_samples
    assert tokens.shape == (3, encoder.num_tokens, encoder.dim) == (3, num_tokens, dim)
    assert torch.equal(x, before)
    features = encoder(x)
    assert features.shape == (3, dim)
    (features * torch.randn_like(features)).sum().backward()
    without = [key for key, p in encoder.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []
    for stage, part in encoder.stages.items():
        assert any(p.grad is not None and p.grad.any() for p in part.parameters()), stage


@pytest.mark.parametrize("name", models.LIBRARY_MODELS)
def test_stages_hold_everything_once_and_in_order(name: str) -> None:
    encoder = build(name)
    assert list(encoder.stages) == STAGES[name].split()
    held = [parameter for *_, parameter in encoder.covered_parameters()]
    assert {id(parameter) for parameter in held} == {id(parameter) for parameter in encoder.parameters()}
    kept = list(encoder.state_dict(keep_vars=True).values())
    assert len({id(tensor) for tensor in kept}) == len({tensor.data_ptr() for tensor in kept}) == len(kept)
    staged = {id(module) for part in encoder.stages.values() for module in part.modules()}
    assert isinstance(encoder, stages.LibraryEncoder)
    leaves = {key: module for key, module in encoder.body.named_modules() if not list(module.children())}
    assert [key for key, module in leaves.items() if id(module) not in staged] == []
    assert encoder.training and all(module.training for module in encoder.modules())


@pytest.mark.parametrize("name", models.LIBRARY_MODELS)
def test_building_draws_no_more_than_the_library_does(name: str) -> None:
    first = snapshot(build(name))
    after = torch.rand(1)
    again = build(name)
    assert all(torch.equal(tensor, first[key]) for key, tensor in again.state_dict().items())
    assert torch.equal(torch.rand(1), after)


@pytest.mark.parametrize("name", models.LIBRARY_MODELS)
def test_features_depend_on_every_lead_and_not_on_the_batch(name: str) -> None:
    encoder, x = build(name, num_leads=2).eval(), torch.rand(3, 2, 187)
    with torch.no_grad():
        features = encoder(x)
        torch.testing.assert_close(features[1:2], encoder(x[1:2]), atol=1e-5, rtol=1e-4)
        for lead in (0, 1):
            changed = x.clone()
            changed[:, lead] = torch.rand(187)
            assert not torch.allclose(encoder(changed), features, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", models.LIBRARY_MODELS)
def test_frozen_at_every_boundary_nothing_moves(name: str) -> None:
    num_stages = len(STAGES[name].split())
    model = Classifier(build(name, num_samples=64), "linear", 5)
    optimizer = make_optimizer(model, 0.5)
    for num_frozen in range(num_stages, -1, -1):  # from the input on, fewer and fewer
        rates = {stage: None if place < num_frozen else 1e-3 for place, stage in enumerate(model.stages)}
        set_rates(model, optimizer, rates)
        before = {stage: snapshot(part) for stage, part in model.stages.items()}
        for _ in range(2):
            optimizer.zero_grad()
            functional.cross_entropy(model(torch.rand(4, 1, 64)), torch.randint(5, (4,))).backward()
            optimizer.step()
        for stage, part in model.stages.items():
            moved = [key for key, tensor in part.state_dict().items() if not torch.equal(tensor, before[stage][key])]
            frozen = rates[stage] is None
            assert bool(moved) is not frozen, (num_frozen, stage, moved)
            inside = set(part.modules()) & set(model.modules())
            assert not (frozen and any(module.training for module in inside))
    assert HEAD not in model.encoder.stages


@pytest.mark.parametrize("name", models.LIBRARY_MODELS)
def test_rebuilt_from_its_file_with_the_same_output(name: str, tmp_path: Path) -> None:
    encoder, x = build(name, num_leads=2), torch.rand(3, 2, 187)
    encoder(x)  # moves BatchNorm's running statistics away from where they start
    save(tmp_path / "a.pt", checkpoint_of(encoder.spec, encoder))
    torch.manual_seed(1)
    rebuilt, loaded = attach(load(tmp_path / "a.pt"), "a.pt")
    assert rebuilt.spec == encoder.spec
    assert loaded.num_parameters == loaded.total_parameters == count_parameters(encoder)
    assert torch.equal(rebuilt.eval()(x), encoder.eval()(x))


@pytest.mark.parametrize("image", timm_nets.imaging.IMAGES)
def test_every_image_suits_timm(image: str) -> None:
    encoder = build("timm:convnext_atto", num_leads=2, options={"image": image, "size": 32})
    assert encoder.tokens(torch.rand(2, 2, 187)).shape == (2, 1, 320)


def test_the_size_of_the_image_is_an_option() -> None:
    assert build("timm:vit_tiny_patch16_224", options={"size": 32}).num_tokens == 4
    assert build("timm:resnet18", options={"size": 96}).num_tokens == 9


def test_channels_may_come_last() -> None:
    encoder = build("timm:swin_tiny_patch4_window7_224")
    assert (encoder.num_tokens, encoder.dim) == (4, 768)
    assert list(encoder.stages) == ["patch_embed", "layers.0", "layers.1", "layers.2", "layers.3", "norm"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("timm:resnet19", r"timm has no model 'resnet19'; .*\bresnet18\b"),
        ("timm:hf-hub:timm/resnet18", "timm has no model 'hf-hub:timm/resnet18'; .*resnet18"),
        ("timm:", "timm has no model ''; .*convnext_atto"),
        ("timm:coat_mini", "timm:coat_mini cannot encode 1 x 187 samples: .*list"),
        ("tsai:PatchTST", "tsai has no classifier 'PatchTST' .*tsai:InceptionTimePlus, .*tsai:ConvTranPlus"),
        ("tsai:os", "tsai has no classifier 'os'"),
        ("tsai:NothingPlus", "tsai has no classifier 'NothingPlus'"),
        ("tsai:HydraPlus", "tsai:HydraPlus cannot encode 1 x 187 samples: it has no parameters to train"),
        ("tsai:TransformerLSTMPlus", "cannot encode 1 x 187 samples: its output depends on the other beats"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_in_one_line(name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        build(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "options"), [("timm:resnet18", {"width": 3}), ("tsai:FCNPlus", {"size": 64})])
def test_an_unknown_option_is_refused(name: str, options: Options) -> None:
    with pytest.raises(ValueError, match=f"{name} has no option"):
        build(name, options=options)


def test_a_patch_that_does_not_divide_the_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"timm:vit_tiny_patch16_224@size=40 cannot encode .*patches of 16 x 16"):
        build("timm:vit_tiny_patch16_224", options={"size": 40})


class Odd(nn.Module):
    """A constant, a second name, a part that is never run, and layers that run in another order than they are made."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))
        self.first = nn.Linear(3, 3)
        self.scale = nn.Parameter(torch.ones(3), requires_grad=False)
        self.shift = nn.Parameter(torch.zeros(3))
        self.unused = nn.Parameter(torch.zeros(3))
        self.classify = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x) * self.scale + self.shift)


def test_a_survey_sorts_out_an_odd_module() -> None:
    odd = Odd()
    output, plan = stages.survey(odd, odd, torch.rand(2, 3))
    assert output.shape == (2, 3)
    assert plan == {"first": ("shift", "first"), "last": ("last", "classify")}
    assert isinstance(odd.classify, nn.Identity) and odd.unused is None
    assert dict(odd.named_buffers()).keys() == {"scale"}
    first = stages.gather(odd, plan["first"])
    assert {id(parameter) for parameter in first.parameters()} == {id(odd.shift), *map(id, odd.first.parameters())}


def test_no_stage_has_the_name_of_the_classifiers_head() -> None:
    module = nn.Sequential()
    module.add_module("stem", nn.Sequential(nn.Linear(3, 3)))
    module.add_module(HEAD, nn.Sequential(nn.Linear(3, 3)))
    assert list(stages.survey(module, module, torch.rand(2, 3))[1]) == ["stem", "body.head"]


def test_a_survey_refuses_what_mixes_beats() -> None:
    module = nn.Linear(3, 3)
    with pytest.raises(ValueError, match="depends on the other beats of a batch"):
        stages.survey(module, lambda x: module(x) - x.mean(0), torch.rand(2, 3))


def test_a_survey_refuses_what_has_no_gradient() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    with pytest.raises(ValueError, match="no gradient"):
        stages.survey(module, lambda x: module[1](module[0](x).detach()), torch.rand(2, 3))


STUB = """
import sys
import torch
from models import torchvision_ops
torchvision_ops._extension_loads = lambda: {loads}
torchvision_ops.declare_missing()
torchvision_ops.declare_missing()
print([hasattr(torch.ops.torchvision, name) for name in ("nms", "qnms", "roi_align")])
{then}
"""


@pytest.mark.parametrize(
    ("loads", "then", "printed"),
    [
        (False, "import torchvision, timm; print(timm.is_model('resnet18'))", "[True, True, False]\nTrue"),
        (True, "", "[False, False, False]"),
    ],
)
def test_operators_are_declared_where_torchvision_cannot_load_its_own(
    python: Callable[..., subprocess.CompletedProcess[str]], loads: bool, then: str, printed: str
) -> None:
    if torchvision_ops._extension_loads():
        pytest.skip("torchvision's own operators are there")
    done = python("-W", "ignore", "-c", STUB.format(loads=loads, then=then))
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, printed, "")


def test_the_libraries_are_imported_only_to_build(python: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    program = (
        "import sys, models\n"
        "for name in models.LIBRARY_MODELS: models.parse(name)\n"
        "libraries = {'timm', 'tsai', 'fastai', 'torchvision'}\n"
        "assert not libraries & set(sys.modules), libraries & set(sys.modules)\n"
        "for name in ('tsai:FCNPlus', 'timm:convnext_atto'): models.build(models.parse(name))\n"
        "assert 'tsai.all' not in sys.modules and libraries <= set(sys.modules)\n"
    )
    done = python("-c", program)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
