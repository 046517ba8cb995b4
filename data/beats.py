"""Beats: the one in-memory type, and the two rules that every beat obeys: scaled to 0…1, zero after its end."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.intervals import RATIOS

NUM_SAMPLES = 187
RATE_HZ = 125.0
MEASURED_AT_ONCE = 512


@dataclass(frozen=True, kw_only=True, eq=False)
class Beats:
    """Heartbeats of one data set or of a part of it, on the CPU.

    A beat starts at its R peak, lasts 1.2 × the median RR interval around it and is zero after that
    (Kachuee et al. 2018, IEEE ICHI, 443–444).

    Raises:
        ValueError: a tensor's shape, type or range does not fit the others.
    """

    signal: Tensor
    """float32, contiguous, (num_beats, num_leads, num_samples), in 0…1."""
    target: Tensor | None
    """int64, (num_beats,), index into `classes`; None where there are no labels."""
    valid_length: Tensor
    """int64, (num_beats,): samples before the zero padding."""
    classes: tuple[str, ...]
    rate_hz: float
    source: str
    """What a table calls the data."""
    fingerprint: str
    """SHA-256 that names the content."""
    group: Tensor | None = None
    """int64, (num_beats,): patient or record; −1 for a beat that belongs to none."""
    intervals: Tensor | None = None
    """float32, (num_beats, 6): the log RR ratios of `data.intervals.RATIOS`."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Beats of the source that reading left out, by reason."""
    remarks: tuple[str, ...] = ()
    """What reading did to the beats: padded, cropped, resampled, scaled."""

    def __post_init__(self) -> None:
        if self.signal.ndim != 3 or self.signal.dtype != torch.float32 or not self.signal.is_contiguous():
            raise ValueError(
                f"signal must be contiguous float32 (num_beats, num_leads, num_samples), "
                f"not {self.signal.dtype} {tuple(self.signal.shape)}"
            )
        for name in ("target", "valid_length", "group"):
            tensor = getattr(self, name)
            if tensor is not None and (tensor.shape != (len(self),) or tensor.dtype != torch.int64):
                raise ValueError(f"{name} must be int64 ({len(self)},), not {tensor.dtype} {tuple(tensor.shape)}")
        if self.intervals is not None and self.intervals.shape != (len(self), len(RATIOS)):
            raise ValueError(f"intervals must be ({len(self)}, {len(RATIOS)}), not {tuple(self.intervals.shape)}")
        if self.target is not None and len(self) and not 0 <= self.target.min() <= self.target.max() < self.num_classes:
            raise ValueError(f"target must be within 0…{self.num_classes - 1}, the classes {' '.join(self.classes)}")

    def __len__(self) -> int:
        return self.signal.shape[0]

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def preprocessing(self) -> dict[str, float | str]:
        """What was done to the raw signal, for a checkpoint to remember."""
        return {
            "rate_hz": self.rate_hz,
            "num_leads": self.signal.shape[1],
            "num_samples": self.signal.shape[2],
            "scaling": "each beat to 0…1",
            "padding": "from the R peak 1.2 × the median RR, then zeros",
        }

    @property
    def labels(self) -> Tensor:
        """`target` where labels are needed.

        Raises:
            ValueError: the beats have no labels.
        """
        if self.target is None:
            raise ValueError(f"{self.source}: the beats have no labels")
        return self.target

    @property
    def notes(self) -> tuple[str, ...]:
        """What reading left out and changed, a line each."""
        dropped = (f"dropped {count:,} beats: {reason}" for reason, count in self.dropped.items())
        return tuple(f"{self.source}: {note}" for note in (*dropped, *self.remarks))

    def counts(self) -> dict[str, int]:
        """Number of beats of each class, in the order of `classes`."""
        counts = torch.bincount(self.labels, minlength=self.num_classes)
        return dict(zip(self.classes, counts.tolist(), strict=True))

    def select(self, index: Tensor) -> "Beats":
        """The beats at `index` (int64 positions or a boolean mask), in that order."""
        if index.dtype == torch.bool:
            index = index.nonzero().squeeze(1)
        parts = {
            name: None if tensor is None else tensor[index]
            for name in ("signal", "target", "valid_length", "group", "intervals")
            for tensor in (getattr(self, name),)
        }
        return replace(self, **parts, fingerprint=derive(self.fingerprint, index.to(torch.int64).numpy()))


def concatenate(parts: Sequence[Beats]) -> Beats:
    """The beats of several sources as one.

    Labels remain where all have the same classes, RR intervals where all have them. A patient's number is
    his own: those of different sources differ.

    Raises:
        ValueError: the sources differ in leads, samples or rate.
    """
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    for other in parts[1:]:
        if (other.signal.shape[1:], other.rate_hz) != (first.signal.shape[1:], first.rate_hz):
            raise ValueError(
                f"{first.source} has {tuple(first.signal.shape[1:])} leads and samples at {first.rate_hz:g} Hz, "
                f"{other.source} {tuple(other.signal.shape[1:])} at {other.rate_hz:g} Hz: they cannot be joined"
            )
    labelled = all(part.target is not None and part.classes == first.classes for part in parts)
    groups, known = [], 0
    for part in parts:
        group = torch.full((len(part),), -1) if part.group is None else part.group
        groups.append(torch.where(group < 0, group, group + known))
        known = max(known, int(groups[-1].max()) + 1) if len(part) else known
    return Beats(
        signal=torch.cat([part.signal for part in parts]),
        target=torch.cat([part.labels for part in parts]) if labelled else None,
        valid_length=torch.cat([part.valid_length for part in parts]),
        classes=first.classes if labelled else (),
        rate_hz=first.rate_hz,
        source=" + ".join(part.source for part in parts),
        fingerprint=derive(first.fingerprint, *(part.fingerprint for part in parts[1:])),
        group=torch.cat(groups) if known else None,
        intervals=torch.cat([part.intervals for part in parts if part.intervals is not None])
        if all(part.intervals is not None for part in parts)
        else None,
        dropped={f"{part.source}: {reason}": count for part in parts for reason, count in part.dropped.items()},
        remarks=tuple(f"{part.source}: {remark}" for part in parts for remark in part.remarks),
    )


def derive(fingerprint: str, *parts: object) -> str:
    """SHA-256 of what was made from `fingerprint` by `parts` (arrays by their bytes, anything else by its text)."""
    digest = hashlib.sha256(fingerprint.encode())
    for part in parts:
        digest.update(np.ascontiguousarray(part).data if isinstance(part, np.ndarray) else f"\0{part}".encode())
    return digest.hexdigest()


def measure_length(signal: Tensor) -> Tensor:
    """Samples before the zero padding, in any lead: (num_beats, num_leads, num_samples) → int64 (num_beats,)."""
    place = np.arange(1, signal.shape[2] + 1, dtype=np.int16)
    length = np.zeros(len(signal), np.int64)
    for first in range(0, len(signal), MEASURED_AT_ONCE):
        block = signal[first : first + MEASURED_AT_ONCE].numpy()
        length[first : first + len(block)] = ((block != 0) * place).max(axis=(1, 2), initial=0)
    return torch.from_numpy(length)


def scale_and_pad(rows: NDArray[np.floating], length: NDArray[np.integer]) -> NDArray[np.float32]:
    """Scale each beat's first `length` samples to 0…1 and zero the rest; a flat beat becomes zero.

    Args:
        rows: (num_beats, num_samples).
        length: (num_beats,) in samples.
    """
    valid = np.arange(rows.shape[1]) < length[:, None]
    low = np.where(valid, rows, np.inf).min(axis=1, keepdims=True)
    span = np.where(valid, rows, -np.inf).max(axis=1, keepdims=True) - low
    scaled = np.zeros(rows.shape, np.float32)
    np.divide(rows - low, span, out=scaled, where=valid & (span > 0), casting="same_kind")
    return scaled
