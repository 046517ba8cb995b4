import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import models
from data.augment import valid_mask
from pretrain.spectrogram import FLOOR, MaskedSpectrogram, log_spectra
from pretrain.task import Batch, Objective

ARCHITECTURES = ("transformer1d@dim=8,depth=1,heads=2", "resnet1d@width=4,kernel=3")
LENGTHS = torch.tensor([0, 1, 11, 12, 100, 187])


def expected_spectra(signal: np.ndarray, patch: int) -> np.ndarray:
    """The docstring, one patch of one lead at a time: (batch, num_patches, lead × frequencies)."""
    width = 3 * patch
    hann = np.array([0.5 - 0.5 * np.cos(2 * np.pi * n / width) for n in range(width)])
    made = []
    for beat in signal:
        tokens = []
        for token in range(signal.shape[-1] // patch):
            start = (token - 1) * patch
            spectra = []
            for lead in beat:
                inside = [lead[t] if 0 <= t < len(lead) else 0.0 for t in range(start, start + width)]
                spectra.append(np.log(np.abs(np.fft.rfft(np.array(inside) * hann)) + FLOOR))
            tokens.append(np.concatenate(spectra))
        made.append(tokens)
    return np.array(made)


def make_task(architecture: str = ARCHITECTURES[0], mask_ratio: float = 0.6, leads: int = 1) -> MaskedSpectrogram:
    torch.manual_seed(0)
    encoder = models.build(models.parse(architecture, num_leads=leads))
    return MaskedSpectrogram(encoder, Objective(mask_ratio=mask_ratio))


def make_batch(leads: int = 1) -> Batch:
    return Batch(torch.rand(len(LENGTHS), leads, 187) * valid_mask(LENGTHS, 187), LENGTHS)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 3), st.integers(1, 2), st.integers(1, 5), st.integers(2, 12), st.integers(0, 1000))
def test_spectra_equal_the_docstring(num_beats: int, leads: int, num_patches: int, patch: int, seed: int) -> None:
    signal = np.random.default_rng(seed).uniform(size=(num_beats, leads, num_patches * patch))
    found = log_spectra(torch.from_numpy(signal), patch)
    assert found.dtype == torch.float32
    assert found.shape == (num_beats, num_patches, leads * (3 * patch // 2 + 1))
    assert found.numpy() == pytest.approx(expected_spectra(signal, patch), abs=1e-3)


def test_silence_is_at_the_floor_and_polarity_does_not_count() -> None:
    assert log_spectra(torch.zeros(1, 1, 33), 11).numpy() == pytest.approx(np.full((1, 3, 17), np.log(FLOOR)))
    signal = torch.randn(2, 1, 187)
    assert torch.allclose(log_spectra(-signal, 11), log_spectra(signal, 11))


@pytest.mark.parametrize("cycles", [3, 8, 15])
def test_a_sine_is_found_at_its_frequency_whatever_its_phase(cycles: int) -> None:
    """`cycles` in the three patches of a window; the first and last patch's windows reach beyond the beat.

    At the floor, rounding in float32 is a hundred times as large in the logarithm.
    """
    time = 2 * torch.pi * cycles * torch.arange(187) / 33
    early, late = (log_spectra(torch.sin(time + phase)[None, None], 11)[0, 1:-1] for phase in (0.0, 1.0))
    assert (early.argmax(1) == cycles).all()
    assert torch.allclose(early, late, atol=1e-2)


@pytest.mark.parametrize("leads", [1, 2])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loss_is_over_whole_spectra_of_hidden_patches_that_hold_a_sample(architecture: str, leads: int) -> None:
    task = make_task(architecture, leads=leads)
    views = task.views(make_batch(leads))
    signal, order, _ = views
    (predicted,) = task(*views)
    wanted = expected_spectra(signal.double().numpy(), 11)
    assert predicted.shape == wanted.shape == (len(LENGTHS), 17, leads * 17)
    errors = [
        (predicted[beat, patch].detach().double().numpy() - wanted[beat, patch]) ** 2
        for beat, length in enumerate(LENGTHS.tolist())
        for patch in order[beat, : task.num_hidden].tolist()
        if patch * 11 < length
    ]
    assert len(errors) > 10
    assert task.objective([predicted], views).item() == pytest.approx(np.mean(errors), rel=1e-4)


@pytest.mark.parametrize("leads", [1, 2])
def test_a_patch_with_any_sample_counts_whole_and_padding_not_at_all(leads: int) -> None:
    task = make_task(leads=leads)
    counted = task.counted(task.views(make_batch(leads))[2])
    expected = [[[patch * 11 < length] * (leads * 17) for patch in range(17)] for length in LENGTHS.tolist()]
    assert counted.tolist() == expected


def test_padding_and_visible_patches_do_not_count() -> None:
    task = make_task()
    views = task.views(make_batch())
    hidden = torch.zeros(len(LENGTHS), 17, dtype=torch.bool).scatter_(1, views[1][:, : task.num_hidden], True)
    counted = hidden[..., None] & task.counted(views[2])
    predicted, noise = torch.randn(2, len(LENGTHS), 17, 17)
    loss = task.objective([predicted], views)
    assert task.objective([predicted + 9 * noise * ~counted], views) == loss
    assert task.objective([predicted + 9 * noise * counted], views) != loss


def test_spectra_keep_float32_where_the_encoder_runs_in_bf16() -> None:
    task, signal = make_task(), torch.rand(4, 1, 187)
    views = task.views(make_batch())
    (predicted,) = task(*views)
    with torch.autocast("cpu", torch.bfloat16):
        found, loss = log_spectra(signal, 11), task.objective([predicted], views)
        assert task(*views)[0].dtype == torch.float32
    assert found.dtype == loss.dtype == torch.float32
    assert found.numpy() == pytest.approx(expected_spectra(signal.double().numpy(), 11), abs=1e-3)
    assert loss.item() == pytest.approx(task.objective([predicted], views).item(), rel=1e-6)


def test_no_loss_is_known_for_an_encoder_that_says_nothing() -> None:
    assert make_task().chance(8) is None
