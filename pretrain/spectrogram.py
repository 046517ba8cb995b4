"""Masked spectrogram: hide spans of a beat and predict the spectrum there, rather than the samples.

Phase does not count, so the encoder is asked for how fast and how far the signal moves there, and not for where each
sample lies (as masked spectrogram models of audio are, e.g. Gong et al. 2022, SSAST, arXiv 2110.09784).
"""

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from pretrain.masked import Masked

FLOOR = 1e-2
"""Added to a magnitude before its logarithm: below it lies noise."""


class MaskedSpectrogram(Masked):
    """As `Masked`, with each patch's log-magnitude spectrum as the target."""

    @property
    def width(self) -> int:
        return self.encoder.spec.num_leads * (3 * self.patch // 2 + 1)

    def target(self, signal: Tensor, real_BNP: Tensor) -> Tensor:
        del real_BNP
        return log_spectra(signal, self.patch)

    def counted(self, real_BNP: Tensor) -> Tensor:
        """The whole spectrum of a patch that holds a real sample."""
        return real_BNP.any(-1, keepdim=True).expand(-1, -1, self.width)

    def chance(self, batch_size: int) -> float | None:
        del batch_size


def log_spectra(signal: Tensor, patch: int) -> Tensor:
    """Natural logarithm of the magnitude spectrum around each patch.

    A Hann window of three patches is centred on each; beyond the beat's ends there are zeros.

    Args:
        signal: (batch, lead, time), float.

    Returns:
        (batch, num_patches, lead × frequencies), 3 × patch // 2 + 1 frequencies from 0 Hz up.
    """
    frames = functional.pad(signal.float(), (patch, patch)).unfold(-1, 3 * patch, patch)
    window = torch.hann_window(3 * patch, device=signal.device)
    spectra = torch.fft.rfft(frames * window).abs()
    return rearrange((spectra + FLOOR).log(), "batch lead token frequency -> batch token (lead frequency)")
