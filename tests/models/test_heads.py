from typing import Any

import pytest
import torch

import models
from models.encoder import EncoderSpec
from models.heads import HEADS, Classifier


@pytest.mark.parametrize("name", HEADS)
def test_tokens_become_logits(name: str) -> None:
    torch.manual_seed(0)
    head = HEADS[name](8, 5)
    logits = head(torch.randn(6, 3, 8))
    assert logits.shape == (6, 5)
    (logits * torch.randn_like(logits)).sum().backward()
    assert [key for key, p in head.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("name", ["linear", "mlp"])
def test_pooling_heads_see_the_mean_of_the_tokens(name: str) -> None:
    torch.manual_seed(0)
    head, tokens = HEADS[name](8, 5).eval(), torch.randn(6, 3, 8)
    torch.testing.assert_close(head(tokens), head(tokens.mean(1, keepdim=True)))


def test_attention_starts_as_the_mean_and_then_weighs_tokens() -> None:
    torch.manual_seed(0)
    head: Any = HEADS["attention"](8, 5).eval()
    tokens = torch.randn(6, 3, 8)
    torch.testing.assert_close(head(tokens), head(tokens.mean(1, keepdim=True)))
    with torch.no_grad():
        head.query.copy_(20 * tokens[0, 1])
    alone = head(tokens[:1, 1:2])
    torch.testing.assert_close(head(tokens[:1]), alone, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("encoder", models.ENCODERS)
def test_a_classifier_is_its_encoder_and_its_head(encoder: str, head: str) -> None:
    torch.manual_seed(0)
    model = Classifier(models.build(EncoderSpec(name=encoder)), head, 5).eval()
    x = torch.rand(2, 1, 187)
    logits = model(x)
    assert logits.shape == (2, 5)
    assert torch.equal(logits, model.head(model.encoder.tokens(x)))


def test_an_unknown_head_lists_the_choices() -> None:
    encoder = models.build(EncoderSpec(name="resnet1d", options={"width": 2}))
    with pytest.raises(ValueError, match=f"unknown head 'hydra'; choose from {', '.join(HEADS)}"):
        Classifier(encoder, "hydra", 5)


@pytest.mark.parametrize("name", HEADS)
def test_pooling_first_changes_no_bit(name: str) -> None:
    torch.manual_seed(0)
    head, tokens = HEADS[name](8, 5).eval(), torch.randn(6, 3, 8)
    assert torch.equal(head(head.pool(tokens)), head(tokens))
    assert head.pool(tokens).shape == ((6, 3, 8) if name == "attention" else (6, 1, 8))
