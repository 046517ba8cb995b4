"""Augmentations of whole batches: (batch, lead, time) kept, zero after each beat's valid length.

All draw from torch's global generators, so whoever seeds those decides what is drawn. No flips and no long shifts:
a beat starts at its R peak and its polarity means something.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

RATE_HZ = 125.0


def valid_mask(valid_length_B: Tensor, num_samples: int) -> Tensor:
    """(batch,) lengths → (batch, 1, num_samples), true where a sample is signal and not padding."""
    return (torch.arange(num_samples, device=valid_length_B.device) < valid_length_B[:, None])[:, None]


def amplitude(signal: Tensor, valid_length: Tensor) -> Tensor:
    """Scale each beat by .7 to 1.3."""
    del valid_length
    return signal * torch.empty(len(signal), 1, 1, device=signal.device).uniform_(0.7, 1.3)


def baseline_wander(signal: Tensor, valid_length: Tensor) -> Tensor:
    """Add a slow sine, .15 to .6 Hz (breathing), up to .1 of full scale."""
    del valid_length
    frequency, phase, height = torch.rand(3, len(signal), 1, 1, device=signal.device)
    time_s = torch.arange(signal.shape[-1], device=signal.device) / RATE_HZ
    cycles = (0.15 + 0.45 * frequency) * time_s + phase
    return signal + 0.1 * height * torch.sin(2 * torch.pi * cycles)


def noise(signal: Tensor, valid_length: Tensor) -> Tensor:
    """Add white noise of up to .03 of full scale."""
    del valid_length
    level = torch.empty(len(signal), 1, 1, device=signal.device).uniform_(0.0, 0.03)
    return signal + level * torch.randn_like(signal)


def span_mask(signal: Tensor, valid_length: Tensor) -> Tensor:
    """Blank one span of up to a quarter of each beat."""
    start, length = torch.rand(2, len(signal), 1, device=signal.device)
    start, length = start * valid_length[:, None], length * valid_length[:, None] / 4
    time = torch.arange(signal.shape[-1], device=signal.device)
    return signal.masked_fill(((time >= start) & (time < start + length))[:, None], 0.0)


def shift(signal: Tensor, valid_length: Tensor) -> Tensor:
    """Move each beat by at most 3 samples (24 ms); the first sample stands in for what is moved in."""
    offset = torch.randint(-3, 4, (len(signal), 1), device=signal.device)
    time = torch.arange(signal.shape[-1], device=signal.device) - offset
    last = (valid_length[:, None] - 1).clamp(min=0)
    source = time.clamp(min=0).minimum(last)
    return signal.gather(-1, source[:, None].expand_as(signal))


def time_warp(signal: Tensor, valid_length: Tensor) -> Tensor:
    """Play each beat up to a fifth faster here and slower there (Um et al. 2017, ICMI, arXiv 1706.00527).

    The time axis is bent by three sines of random height that vanish at both ends, so the R peak and the valid length
    stay; their slopes sum to .2 at most, so time never runs backwards.
    """
    last = (valid_length[:, None] - 1).clamp(min=1)
    time = torch.arange(signal.shape[-1], device=signal.device)
    angle = torch.pi * (time / last).clamp(max=1)
    bend = torch.zeros_like(angle)
    for turns, slope in enumerate(torch.rand(3, len(signal), 1, device=signal.device), start=1):
        bend += 0.2 / 3 * (2 * slope - 1) * torch.sin(turns * angle) / turns
    source = (time + last / torch.pi * bend).clamp(min=0).minimum(last)
    before = source.long()
    after = (before + 1).clamp(max=signal.shape[-1] - 1)
    earlier, later = (signal.gather(-1, at[:, None].expand_as(signal)) for at in (before, after))
    return earlier.lerp(later, (source - before)[:, None].to(signal.dtype))


def mix(signal: Tensor, valid_length: Tensor) -> Tensor:
    """Add up to a fifth of another beat of the batch, as far as both last.

    Mixup (Zhang et al. 2018, arXiv 1710.09412) draws the share from 0 to 1 and mixes the labels with it; here
    the beat's own share is .8 or more, and it keeps its label, R peak and length.
    """
    num_beats = len(signal)
    step = torch.randint(1, max(num_beats, 2), (num_beats,), device=signal.device)
    other = (torch.arange(num_beats, device=signal.device) + step) % num_beats
    both = valid_mask(valid_length.minimum(valid_length[other]), signal.shape[-1])
    share = torch.empty(num_beats, 1, 1, device=signal.device, dtype=signal.dtype).uniform_(0.0, 0.2)
    return signal.lerp(signal[other], share * both)


Augmentation = Callable[[Tensor, Tensor], Tensor]

AUGMENTATIONS: dict[str, Augmentation] = {
    "amplitude": amplitude,
    "baseline_wander": baseline_wander,
    "noise": noise,
    "span_mask": span_mask,
    "shift": shift,
    "time_warp": time_warp,
    "mix": mix,
}


def augment(signal: Tensor, valid_length: Tensor, names: Sequence[str]) -> Tensor:
    """Apply the named augmentations in turn.

    Raises:
        ValueError: an unknown name.
    """
    if unknown := [name for name in names if name not in AUGMENTATIONS]:
        raise ValueError(f"unknown augmentation {unknown[0]!r}; choose from {', '.join(AUGMENTATIONS)}")
    for name in names:
        signal = AUGMENTATIONS[name](signal, valid_length)
    return signal * valid_mask(valid_length, signal.shape[-1])
