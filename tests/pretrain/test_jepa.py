import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import models
from data.augment import valid_mask
from pretrain.jepa import Jepa
from pretrain.masked import patches
from pretrain.task import Batch, Objective

LENGTHS = torch.tensor([0, 11, 12, 100, 187])


def make_task(mask_ratio: float = 0.6, momentum: float = 0.9, leads: int = 1) -> Jepa:
    torch.manual_seed(0)
    encoder = models.build(models.parse("transformer1d@dim=8,depth=1,heads=2", num_leads=leads))
    return Jepa(encoder, Objective(mask_ratio=mask_ratio, momentum=momentum))


def make_batch(leads: int = 1) -> Batch:
    return Batch(torch.rand(len(LENGTHS), leads, 187) * valid_mask(LENGTHS, 187), LENGTHS)


def expected_loss(predicted: np.ndarray, wanted: np.ndarray, order: np.ndarray, lengths: list[int], hide: int) -> float:
    """Squared error of each number of each token of a hidden patch that holds a sample of the beat."""
    errors = []
    for beat, length in enumerate(lengths):
        for patch in order[beat, :hide]:
            if patch * 11 < length:
                errors += [(p - w) ** 2 for p, w in zip(predicted[beat, patch], wanted[beat, patch], strict=True)]
    return float(np.mean(errors)) if errors else 0.0


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 187), min_size=1, max_size=4), st.sampled_from([0.1, 0.5, 0.9]), st.integers(0, 1000))
def test_loss_is_over_hidden_patches_that_hold_a_sample(lengths: list[int], ratio: float, seed: int) -> None:
    task, known = make_task(ratio), torch.tensor(lengths)
    views = task.views(Batch(torch.rand(len(lengths), 1, 187), known))
    predicted, wanted = np.random.default_rng(seed).normal(size=(2, len(lengths), 17, 8))
    found = task.objective([torch.from_numpy(predicted), torch.from_numpy(wanted)], views).item()
    expected = expected_loss(predicted, wanted, views[1].numpy(), lengths, round(ratio * 17))
    assert found == pytest.approx(expected, rel=1e-9)


def test_padding_and_visible_patches_do_not_count() -> None:
    task = make_task()
    signal, order, real = task.views(make_batch())
    hidden = torch.zeros(5, 17, dtype=torch.bool).scatter_(1, order[:, : task.num_hidden], True)
    counted = (hidden & real)[..., None]
    predicted, wanted, noise = torch.randn(3, 5, 17, 8)
    loss = task.objective([predicted, wanted], [signal, order, real])
    outside = [predicted + 9 * noise * ~counted, wanted - 9 * noise * ~counted]
    assert task.objective(outside, [signal, order, real]) == loss
    assert task.objective([predicted + 9 * noise * counted, wanted], [signal, order, real]) != loss


def test_real_patches_are_those_that_begin_within_the_beat() -> None:
    _, order, real = make_task().views(make_batch(leads=2))
    assert real.tolist() == [[patch * 11 < length for patch in range(17)] for length in LENGTHS.tolist()]
    assert order.sort(1).values.tolist() == [list(range(17))] * len(LENGTHS)


def test_what_is_wanted_is_the_targets_view_of_the_whole_beat_normalised() -> None:
    task = make_task()
    with torch.no_grad():
        for parameter in task.target_encoder.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    views = task.views(make_batch())
    _, wanted = task(*views)
    with torch.no_grad():
        tokens = task.target_encoder.tokens(views[0]).double().numpy()
    for beat, token in np.ndindex(*tokens.shape[:2]):
        values = tokens[beat, token]
        expected = (values - values.mean()) / np.sqrt(values.var() + 1e-5)
        assert wanted[beat, token].numpy() == pytest.approx(expected, abs=1e-4)


def test_no_gradient_reaches_the_target_side() -> None:
    task = make_task()
    signal, *others = task.views(make_batch())
    views = signal.requires_grad_(), *others
    outputs = task(*views)
    assert [output.requires_grad for output in outputs] == [True, False]
    task.objective(outputs, views).backward()
    assert all(p.grad is None and not p.requires_grad for p in task.target_encoder.parameters())
    assert all(p.grad is not None and p.grad.any() for p in task.encoder.parameters())


@pytest.mark.parametrize("leads", [1, 2])
@pytest.mark.parametrize("mask_ratio", [0.1, 0.6, 0.9])
def test_a_prediction_sees_visible_patches_only(mask_ratio: float, leads: int) -> None:
    task = make_task(mask_ratio, leads=leads)
    signal, order, real = task.views(make_batch(leads))
    signal.requires_grad_()
    predicted, _ = task(signal, order, real)
    (gradient,) = torch.autograd.grad((predicted * torch.randn_like(predicted)).sum(), signal)
    reached = patches(gradient, 11).any(-1)
    assert torch.equal(reached, torch.ones_like(reached).scatter_(1, order[:, : task.num_hidden], False))


@pytest.mark.parametrize("mask_ratio", [0.1, 0.6, 0.9])
def test_hidden_samples_change_what_is_wanted_and_not_what_is_predicted(mask_ratio: float) -> None:
    task = make_task(mask_ratio)
    signal, order, real = task.views(make_batch())
    hidden = torch.zeros(5, 17).scatter_(1, order[:, : task.num_hidden], 1.0).repeat_interleave(11, 1)[:, None]
    (predicted, wanted), (other, moved) = (task(x, order, real) for x in (signal, signal + hidden))
    assert torch.equal(predicted, other)
    assert not torch.isclose(wanted, moved).flatten(1).all(1).any()


@pytest.mark.parametrize(("progress", "stays"), [(0.0, 0.9), (0.5, 0.95), (1.0, 1.0)])
def test_the_target_starts_equal_and_follows_the_encoder(progress: float, stays: float) -> None:
    task = make_task()
    pairs: list[tuple[Tensor, Tensor]] = [
        (online.detach(), target.detach())
        for online, target in zip(task.encoder.parameters(), task.target_encoder.parameters(), strict=True)
    ]
    assert all(torch.equal(*pair) and pair[0].data_ptr() != pair[1].data_ptr() for pair in pairs)
    start = [online.numpy().copy() for online, _ in pairs]
    for online, _ in pairs:
        online.add_(torch.randn_like(online))
    task.before_step(progress)
    for (online, target), old in zip(pairs, start, strict=True):
        assert target.numpy() == pytest.approx(stays * old + (1 - stays) * online.numpy(), abs=1e-5)


def test_the_loss_stays_in_float32_under_bf16() -> None:
    task = make_task()
    views = task.views(make_batch())
    precise = task.objective(task(*views), views)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = task(*views)
        loss = task.objective(outputs, views)
        assert task.objective([output.detach() for output in outputs], views) == loss
    assert {loss.dtype, *(output.dtype for output in outputs)} == {torch.float32}
    assert loss.item() == pytest.approx(precise.item(), rel=0.05)
    assert task.objective(outputs, views) == loss


@pytest.mark.parametrize("architecture", ["resnet1d", "resnet1d@width=16", "gru"])
def test_an_encoder_that_cannot_take_patches_alone_is_refused(architecture: str) -> None:
    encoder = models.build(models.parse(architecture))
    with pytest.raises(ValueError, match=f"--arch transformer1d, and not {architecture}$") as refusal:
        Jepa(encoder, Objective())
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.5])
def test_hiding_nothing_or_everything_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match=f"--mask-ratio {ratio} hides"):
        make_task(ratio)
