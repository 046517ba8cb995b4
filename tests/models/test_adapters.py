import pytest
import torch
from torch import nn

import models
from models.adapters import LowRank, adapt, merge
from models.checkpoint import weights_of
from models.encoder import EncoderSpec
from models.heads import Classifier
from models.params import make_optimizer, set_rates


def encoder_of(name: str) -> models.encoder.Encoder:  # pyright: ignore[reportAttributeAccessIssue]
    torch.manual_seed(0)
    return models.build(EncoderSpec(name=name)).eval()


@pytest.mark.parametrize("name", models.ENCODERS)
def test_an_adapter_changes_nothing_until_it_learns_and_merging_leaves_a_plain_encoder(name: str) -> None:
    encoder, x = encoder_of(name), torch.rand(3, 1, 187)
    before, names = encoder(x), list(encoder.state_dict())
    adapt(encoder, 2)
    assert torch.allclose(encoder(x), before, atol=1e-6)
    for part in encoder.modules():
        if isinstance(part, LowRank):
            nn.init.normal_(part.up, std=0.1)
    changed = encoder(x)
    assert not torch.allclose(changed, before, atol=1e-4)
    merge(encoder)
    assert list(encoder.state_dict()) == names or set(encoder.state_dict()) == set(names)
    assert torch.allclose(encoder(x), changed, atol=1e-6)
    assert not any(isinstance(part, LowRank) for part in encoder.modules())


def test_an_adapted_weight_is_the_frozen_one_plus_a_product_of_low_rank() -> None:
    torch.manual_seed(0)
    layer = nn.Conv1d(3, 5, 4)
    frozen = layer.weight.detach().clone()
    adapt(layer, 2)
    low_rank = next(part for part in layer.modules() if isinstance(part, LowRank))
    nn.init.normal_(low_rank.up)
    added = (layer.weight - frozen).detach().flatten(1)
    expected = low_rank.up.detach().numpy() @ low_rank.down.detach().numpy()
    assert torch.linalg.matrix_rank(added) == 2
    assert added.numpy() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", models.ENCODERS)
def test_only_adapters_and_head_learn(name: str) -> None:
    encoder = encoder_of(name)
    adapt(encoder, 2)
    model = Classifier(encoder, "linear", 3)
    optimizer = make_optimizer(model, 0.1)
    groups = {(group["stage"], group["kind"]): group["weight_decay"] for group in optimizer.param_groups}
    assert {kind for _, kind in groups} >= {"adapter", "weight"}
    assert all((decay > 0) is (kind == "weight") for (_, kind), decay in groups.items())
    set_rates(model, optimizer, {stage: {"adapter": 0.01} for stage in model.encoder.stages} | {"head": 0.01})
    before = weights_of(model)
    for _ in range(2):  # after the first step only `up` has moved
        loss = nn.functional.cross_entropy(model(torch.rand(6, 1, 187)), torch.arange(6) % 3)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    trained = dict(model.named_parameters())
    moved = {
        key for key, tensor in weights_of(model).items() if key in trained and not torch.equal(tensor, before[key])
    }
    adapters = {key for key in trained if key.endswith((".up", ".down"))}
    assert moved == adapters | {"head.classify.weight", "head.classify.bias"}


def test_a_rank_or_a_module_that_does_not_serve_is_refused() -> None:
    with pytest.raises(ValueError, match="--rank 0"):
        adapt(nn.Linear(2, 2), 0)
    with pytest.raises(ValueError, match="no linear layer and no convolution"):
        adapt(nn.ReLU(), 1)
