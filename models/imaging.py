"""Beats as images: (batch, num_leads, num_samples) → (batch, num_leads, height, width), without parameters.

All are computed in float32, whatever the beats' type and whether or not autocast is on; each lead is an image of its
own. The fields and plots have 48 × 48 pixels at every length; beats are taken to be scaled to 0…1.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from math import ceil, sqrt

import torch
from einops import einsum, rearrange
from torch import Tensor, nn
from torch.nn import functional

SIDE = 48
"""Height and width of the fields and plots."""
BINS = 8
"""Quantile bins of the Markov transition field."""
STATE = 2
"""Successive values that make a state of the recurrence plot."""
WINDOW, HOP = 32, 4
"""Samples of the spectrogram: at 125 Hz 256 ms (rows 3.9 Hz apart) and 32 ms."""
QUIET = 0.01
"""Magnitude from which the spectrogram is logarithmic."""


class Image(nn.Module, ABC):
    """A way to draw beats of `num_samples` samples as images of `size` (height, width)."""

    size: tuple[int, int]

    def forward(self, x_BLN: Tensor) -> Tensor:
        with torch.autocast(x_BLN.device.type, enabled=False):
            return self.draw(x_BLN.float())

    @abstractmethod
    def draw(self, x_BLN: Tensor) -> Tensor:
        """float32 (batch, lead, num_samples) → float32 (batch, lead, height, width)."""


class Fold(Image):
    """Rows of successive samples, zeros after the last: 187 samples → 16 × 12; height / width is near 4 / 3."""

    def __init__(self, num_samples: int) -> None:
        super().__init__()
        width = max(1, round(sqrt(num_samples * 3 / 4)))
        self.size = (ceil(num_samples / width), width)
        self.padding = self.size[0] * width - num_samples

    def draw(self, x_BLN: Tensor) -> Tensor:
        padded = functional.pad(x_BLN, (0, self.padding))
        return rearrange(padded, "batch lead (height width) -> batch lead height width", width=self.size[1])


class GramianField(Image):
    """What the Gramian fields share: 48 frames, each the cosine of an angle (Wang and Oates 2015, arXiv 1506.00327).

    Every beat is scaled from 0…1 to −1…1 alike, so its amplitude stays; values outside are clipped.
    """

    paa_FN: Tensor

    def __init__(self, num_samples: int) -> None:
        super().__init__()
        self.size = (SIDE, SIDE)
        self.register_buffer("paa_FN", aggregation(num_samples, SIDE), persistent=False)

    def cosine_and_sine(self, x_BLN: Tensor) -> tuple[Tensor, Tensor]:
        cosine = (2 * (x_BLN @ self.paa_FN.T) - 1).clamp(-1, 1)
        # Kept off zero, where the root has no derivative: 1 − cosine² is either 0 or far above 1e-12.
        return cosine, (1 - cosine.square()).clamp(min=1e-12).sqrt()


class GramianSummationField(GramianField):
    """cos(φᵢ + φⱼ)."""

    def draw(self, x_BLN: Tensor) -> Tensor:
        cosine, sine = self.cosine_and_sine(x_BLN)
        return outer(cosine, cosine) - outer(sine, sine)


class GramianDifferenceField(GramianField):
    """sin(φᵢ − φⱼ)."""

    def draw(self, x_BLN: Tensor) -> Tensor:
        cosine, sine = self.cosine_and_sine(x_BLN)
        return outer(sine, cosine) - outer(cosine, sine)


class MarkovTransitionField(Image):
    """How often the beat steps from the bin of sample i to that of sample j (Wang and Oates 2015, arXiv 1506.00327).

    Each beat has 8 quantile bins of its own; equal samples, such as the zeros after a beat, share the lowest bin that
    they reach. The field over all pairs of samples is averaged to 48 × 48. Constant in small changes of the beat, so
    without gradient to it.
    """

    paa_FN: Tensor
    below: Tensor
    share: Tensor

    def __init__(self, num_samples: int) -> None:
        super().__init__()
        self.size = (SIDE, SIDE)
        self.last = num_samples - 1
        position = torch.arange(1, BINS) * self.last
        self.register_buffer("paa_FN", aggregation(num_samples, SIDE), persistent=False)
        self.register_buffer("below", position // BINS, persistent=False)
        self.register_buffer("share", position % BINS / BINS, persistent=False)

    def draw(self, x_BLN: Tensor) -> Tensor:
        member_BLQN = self.members(x_BLN)
        count_BLQQ = member_BLQN[..., :-1] @ member_BLQN[..., 1:].mT
        step_BLQQ = count_BLQQ / count_BLQQ.sum(-1, keepdim=True).clamp(min=1)
        # Averaging the field memberᵀ · step · member over frames is the same as averaging the members first.
        frame_BLQF = member_BLQN @ self.paa_FN.T
        return frame_BLQF.mT @ step_BLQQ @ frame_BLQF

    def members(self, x_BLN: Tensor) -> Tensor:
        """1 where a sample is in a bin, else 0; not torch.quantile, which refuses more than 16 million samples."""
        ordered = x_BLN.sort(-1).values
        above = (self.below + 1).clamp(max=self.last)
        edge_BLE = ordered[..., self.below].lerp(ordered[..., above], self.share)
        exceeds_BLEN = (x_BLN[..., None, :] > edge_BLE[..., :, None]).float()
        return functional.pad(exceeds_BLEN, (0, 0, 1, 0), value=1.0) - functional.pad(exceeds_BLEN, (0, 0, 0, 1))


class RecurrencePlot(Image):
    """Distances between states (Eckmann et al. 1987, doi 10.1209/0295-5075/4/9/004), unthresholded, 0…1.

    A state is two successive frames of 49, so that rising and falling through one height are different states;
    distances are root mean squares.
    """

    paa_FN: Tensor

    def __init__(self, num_samples: int) -> None:
        super().__init__()
        self.size = (SIDE, SIDE)
        self.register_buffer("paa_FN", aggregation(num_samples, SIDE + STATE - 1), persistent=False)

    def draw(self, x_BLN: Tensor) -> Tensor:
        state_BLFS = (x_BLN @ self.paa_FN.T).unfold(-1, STATE, 1)
        difference = state_BLFS[..., :, None, :] - state_BLFS[..., None, :, :]
        return torch.linalg.vector_norm(difference, dim=-1) / sqrt(STATE)


class Spectrogram(Image):
    """log(1 + magnitude / 0.01) of the short-time Fourier transform: frequency × time, 187 samples → 17 × 47.

    Hann window of 32 samples, a hop of 4, the beat padded with 16 zeros at both ends: any length is possible.
    """

    window: Tensor

    def __init__(self, num_samples: int) -> None:
        super().__init__()
        self.size = (WINDOW // 2 + 1, num_samples // HOP + 1)
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)

    def draw(self, x_BLN: Tensor) -> Tensor:
        frame_BLTW = functional.pad(x_BLN, (WINDOW // 2, WINDOW // 2)).unfold(-1, WINDOW, HOP) * self.window
        magnitude = torch.fft.rfft(frame_BLTW).abs()
        return rearrange(torch.log1p(magnitude / QUIET), "batch lead time frequency -> batch lead frequency time")


IMAGES: dict[str, Callable[[int], Image]] = {
    "fold": Fold,
    "gasf": GramianSummationField,
    "gadf": GramianDifferenceField,
    "mtf": MarkovTransitionField,
    "recurrence": RecurrencePlot,
    "spectrogram": Spectrogram,
}


def make_image(name: str, num_samples: int) -> Image:
    """The image of that name for beats of `num_samples` samples.

    Raises:
        ValueError: an unknown name; the message lists the choices.
    """
    if name not in IMAGES:
        raise ValueError(f"unknown image {name!r}; choose from {', '.join(IMAGES)}")
    return IMAGES[name](num_samples)


def aggregation(num_samples: int, num_frames: int) -> Tensor:
    """Piecewise aggregate approximation as a matrix (frame, sample): each frame is the mean of its stretch of time.

    A sample that two frames cut counts in each by its part (Keogh et al. 2001, doi 10.1007/PL00011669).
    """
    edge = torch.linspace(0, num_samples, num_frames + 1, dtype=torch.float64)
    sample = torch.arange(num_samples)
    overlap = torch.minimum(edge[1:, None], sample + 1) - torch.maximum(edge[:-1, None], sample)
    return (overlap.clamp(min=0) * num_frames / num_samples).float()


def outer(a_BLF: Tensor, b_BLF: Tensor) -> Tensor:
    return einsum(a_BLF, b_BLF, "batch lead row, batch lead column -> batch lead row column")
