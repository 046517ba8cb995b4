import numpy as np
import pytest
import torch

import models
from data.augment import valid_mask
from models.params import decay_groups
from pretrain.multitask import Multitask
from pretrain.task import Batch, Objective

ARCHITECTURES = ("transformer1d@dim=8,depth=1,heads=2", "resnet1d@width=4,kernel=3")
LENGTHS = torch.tensor([40, 100, 120, 187])
TARGET = torch.tensor([2, 0, 1, 1])

pytestmark = pytest.mark.parametrize("architecture", ARCHITECTURES)


def make_task(architecture: str) -> Multitask:
    torch.manual_seed(0)
    return Multitask(models.build(models.parse(architecture)), Objective(class_shares=(0.2, 0.5, 0.3)))


def make_batch() -> Batch:
    return Batch(torch.rand(4, 1, 187) * valid_mask(LENGTHS, 187), LENGTHS, TARGET)


def cross_entropy(logits: np.ndarray) -> float:
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return float(np.mean([-np.log(share[label]) for share, label in zip(shares, TARGET.tolist(), strict=True)]))


def reconstruction(predicted: np.ndarray, signal: np.ndarray, hidden: np.ndarray, per_patch: bool) -> float:
    """Squared error over the real samples of hidden patches, against each patch normalised, or the samples as such."""
    errors = []
    for beat, length in enumerate(LENGTHS.tolist()):
        for patch in hidden[beat]:
            start, stop = patch * 11, min(patch * 11 + 11, length)
            real = signal[beat, 0, start:stop]
            if len(real):
                wanted = (real - real.mean()) / max(real.std(), 1e-2) if per_patch else real
                errors.append((predicted[beat, patch, : len(real)] - wanted) ** 2)
    return float(np.concatenate(errors).mean())


def test_the_loss_is_the_sum_of_both(architecture: str) -> None:
    task = make_task(architecture)
    views = task.views(make_batch())
    tokens, predicted = task(*views)
    logits = task.supervised.head(tokens).detach().double().numpy()
    signal, order, _ = views[2:]
    per_patch = architecture.startswith("transformer1d")
    arrays = predicted.detach().double().numpy(), signal.double().numpy(), order[:, : task.masked.num_hidden].numpy()
    first, second = cross_entropy(logits), reconstruction(*arrays, per_patch)
    assert min(first, second) > 0.01
    assert task.objective([tokens, predicted], views).item() == pytest.approx(first + second, rel=1e-4)


def test_each_loss_has_its_own_view_of_the_same_beats(architecture: str) -> None:
    task, batch = make_task(architecture), make_batch()
    supervised, target, masked, order, real = task.views(batch)
    assert torch.equal(target, TARGET)
    assert not torch.isclose(supervised, masked).flatten(1).all(1).any()
    assert supervised.shape == masked.shape == batch.signal.shape
    for view in (supervised, masked):
        assert not (view * ~valid_mask(LENGTHS, 187)).any()
        assert np.corrcoef(view.flatten().numpy(), batch.signal.flatten().numpy())[0, 1] > 0.3
    assert order.shape == real.shape[:2] == (4, 17)


def test_both_losses_teach_one_encoder(architecture: str) -> None:
    task = make_task(architecture)
    assert task.supervised.encoder is task.masked.encoder is task.masked.reconstruct.encoder is task.encoder
    views = task.views(make_batch())
    parts = task.supervised, task.masked
    losses = [part.objective(part(*own), own) for part, own in zip(parts, (views[:2], views[2:]), strict=True)]
    encoder = list(task.encoder.parameters())
    first, second = (torch.autograd.grad(loss, encoder) for loss in losses)
    both = torch.autograd.grad(task.objective(task(*views), views), encoder)
    for one, other, total in zip(first, second, both, strict=True):
        assert torch.allclose(one + other, total, rtol=1e-3, atol=1e-5)
    assert all(sum(gradient.abs().sum() for gradient in gradients) > 0 for gradients in (first, second))


def test_every_parameter_is_trained_once(architecture: str) -> None:
    task = make_task(architecture)
    groups = [id(parameter) for group in decay_groups(task, 0.1) for parameter in group["params"]]
    parts = task.encoder, task.supervised.head, task.masked.reconstruct
    assert len(groups) == len(set(groups))
    assert set(groups) == {id(parameter) for part in parts for parameter in part.parameters()}


def test_the_loss_stays_in_float32_under_bf16(architecture: str) -> None:
    task = make_task(architecture)
    views = task.views(make_batch())
    precise = task.objective(task(*views), views).item()
    with torch.autocast("cpu", torch.bfloat16):
        loss = task.objective(task(*views), views)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(precise, rel=0.05)


def test_a_source_without_labels_is_refused(architecture: str) -> None:
    with pytest.raises(ValueError, match="learns from labels"):
        make_task(architecture).loss(make_batch()._replace(target=None))
