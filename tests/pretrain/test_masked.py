import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import models
from data.augment import valid_mask
from models.encoder import EncoderSpec
from pretrain.masked import PATCH, SMALLEST_SPREAD, Masked, masked_loss, normalised, patches
from pretrain.task import Batch, Objective

Arrays = tuple[Tensor, Tensor, Tensor, Tensor]


def make_arrays(seed: int, num_beats: int = 3, num_patches: int = 4, width: int = 5) -> Arrays:
    """Prediction, target, hidden, real: each beat has a padded end, some of it within a patch."""
    rng = np.random.default_rng(seed)
    shape = (num_beats, num_patches, width)
    length = rng.integers(0, num_patches * width + 1, num_beats)
    real = (np.arange(num_patches * width) < length[:, None]).reshape(shape)
    arrays = rng.normal(size=shape), rng.random(shape), rng.random(shape[:2]) < 0.5, real
    prediction, target, hidden, mask = (torch.from_numpy(np.asarray(array)) for array in arrays)
    return prediction, target, hidden, mask


def expected_loss(prediction: np.ndarray, target: np.ndarray, hidden: np.ndarray, real: np.ndarray) -> float:
    """The docstring, one sample at a time."""
    total, count = 0.0, 0
    for beat in range(len(target)):
        for patch in range(target.shape[1]):
            counted = np.flatnonzero(real[beat, patch])
            if not hidden[beat, patch] or not len(counted):
                continue
            for sample in counted:
                total += (prediction[beat, patch, sample] - target[beat, patch, sample]) ** 2
                count += 1
    return total / max(count, 1)


@settings(deadline=None)
@given(st.integers(0, 10_000))
def test_loss_equals_the_docstring(seed: int) -> None:
    arrays = make_arrays(seed)
    expected = expected_loss(*(array.numpy() for array in arrays))
    assert masked_loss(*arrays).item() == pytest.approx(expected, rel=1e-9)


@settings(deadline=None)
@given(st.integers(0, 10_000))
def test_targets_are_normalised_over_the_real_samples_of_each_patch(seed: int) -> None:
    _, target, _, real = make_arrays(seed)
    made = normalised(target, real)
    for beat, patch in np.ndindex(*target.shape[:2]):
        samples = target[beat, patch][real[beat, patch]].numpy()
        wanted = np.zeros(target.shape[2])
        if len(samples):
            wanted[real[beat, patch].numpy()] = (samples - samples.mean()) / max(samples.std(), SMALLEST_SPREAD)
        assert made[beat, patch].numpy() == pytest.approx(wanted, abs=1e-9)


def test_a_flat_patch_is_not_blown_up() -> None:
    target = 0.5 + 1e-5 * torch.tensor([[[1.0, -1.0, 1.0, -1.0]]])
    assert normalised(target, torch.ones(1, 1, 4, dtype=torch.bool)).abs().max().item() < 0.01


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000))
def test_padding_and_visible_patches_do_not_count(seed: int) -> None:
    prediction, target, hidden, real = make_arrays(seed)
    loss = masked_loss(prediction, target, hidden, real)
    outside = ~(real & hidden[..., None])
    noise = torch.from_numpy(np.random.default_rng(seed).normal(size=target.shape))
    assert masked_loss(prediction + 9 * noise * outside, target + 9 * noise * outside, hidden, real) == loss
    counted = real & hidden[..., None]
    if counted.any():
        assert masked_loss(prediction + 9 * noise * counted, target, hidden, real) != loss


def test_a_batch_with_nothing_to_reconstruct_is_zero_and_finite() -> None:
    prediction, target, hidden, real = make_arrays(0)
    prediction.requires_grad_()
    loss = masked_loss(prediction, target, hidden, torch.zeros_like(real))
    loss.backward()
    assert loss.item() == 0
    assert prediction.grad is not None and not prediction.grad.any()


def test_patches_keep_leads_and_time_together() -> None:
    x = torch.arange(2 * 2 * 6.0).reshape(2, 2, 6)
    cut = patches(x, 3)
    assert cut.shape == (2, 2, 6)
    assert cut[1, 1].tolist() == [*x[1, 0, 3:].tolist(), *x[1, 1, 3:].tolist()]


def make_task(encoder: str, num_leads: int = 1, mask_ratio: float = 0.5) -> Masked:
    torch.manual_seed(0)
    return Masked(models.build(EncoderSpec(name=encoder, num_leads=num_leads)), Objective(mask_ratio=mask_ratio))


@pytest.mark.parametrize("num_leads", [1, 2])
@pytest.mark.parametrize("encoder", models.ENCODERS)
def test_the_loss_reaches_every_part_of_the_encoder(encoder: str, num_leads: int) -> None:
    task = make_task(encoder, num_leads)
    lengths = torch.tensor([90, 187, 120, 150])
    signal = torch.rand(4, num_leads, 187) * valid_mask(lengths, 187)
    task.loss(Batch(signal, lengths, None)).backward()
    untouched = [name for name, p in task.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert untouched == []
    for stage, part in task.encoder.stages.items():
        assert any(p.grad is not None and p.grad.any() for p in part.parameters()), stage


@pytest.mark.parametrize("encoder", models.ENCODERS)
def test_a_prediction_sees_visible_patches_only(encoder: str) -> None:
    task = make_task(encoder)
    signal = torch.rand(2, 1, 187, requires_grad=True)
    order = torch.stack([torch.randperm(task.num_patches) for _ in signal])
    prediction = task.reconstruct(signal, order)
    assert prediction.shape == (2, task.num_patches, task.patch)
    (gradient,) = torch.autograd.grad((prediction * torch.randn_like(prediction)).sum(), signal)
    reached = patches(gradient, task.patch).any(-1)
    hidden = torch.zeros_like(reached).scatter_(1, order[:, : task.num_hidden], True)
    assert torch.equal(reached, ~hidden)


@pytest.mark.parametrize("encoder", models.ENCODERS)
def test_padding_is_not_reconstructed(encoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a beat that is padding up to its last patch, hidden padding asks for nothing."""
    monkeypatch.setattr("pretrain.masked.VARIED_BY", ())
    task = make_task(encoder).eval()
    lengths = torch.full((4,), PATCH)
    signal = torch.rand(4, 1, 187) * valid_mask(lengths, 187)
    losses = []
    for seed in range(6):
        torch.manual_seed(seed)
        order = torch.rand(4, task.num_patches).argsort(1)
        torch.manual_seed(seed)
        loss = task.loss(Batch(signal, lengths, None))
        first_is_hidden = (order[:, : task.num_hidden] == 0).any()
        losses.append((bool(first_is_hidden), loss.item() > 0))
    assert {hidden for hidden, _ in losses} != {False}
    assert all(hidden == counted for hidden, counted in losses)


@pytest.mark.parametrize("encoder", models.ENCODERS)
def test_each_beat_hides_the_share_that_was_asked_for(encoder: str) -> None:
    task = make_task(encoder, mask_ratio=0.25)
    assert (task.num_patches, task.num_hidden) == (17, 4)


@pytest.mark.parametrize("ratio", [0.0, 1.0, 0.01, 0.99, -0.5, 1.5])
@pytest.mark.parametrize("encoder", models.ENCODERS)
def test_hiding_nothing_or_everything_is_refused(encoder: str, ratio: float) -> None:
    with pytest.raises(ValueError, match=f"--mask-ratio {ratio} hides"):
        make_task(encoder, mask_ratio=ratio)


def test_a_length_that_cannot_be_cut_is_refused() -> None:
    encoder = models.build(EncoderSpec(name="resnet1d", num_samples=100))
    with pytest.raises(ValueError, match="patches of 11 samples"):
        Masked(encoder, Objective())
