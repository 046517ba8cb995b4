"""Beats of a seeded ECG model, for a first run without any download.

P, Q, R, S and T are Gaussians on the phase of the cardiac cycle: the closed form of the dynamical model of
McSharry et al. 2003, IEEE TBME 50(3):289–294. Each patient draws a morphology and a heart rate, each beat varies it,
and each class changes it as textbooks describe, by a degree that lets neighbouring classes overlap.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray

from data.beats import NUM_SAMPLES, RATE_HZ, Beats, derive, measure_length, scale_and_pad
from data.known import CLASSES
from data.split import Parts, by_patient

Array = NDArray[np.float32]

WAVES = ("P", "Q", "R", "S", "ST", "T", "spike")
P, Q, R, S, ST, T, SPIKE = range(len(WAVES))
# The paper's table, with amplitudes relative to R in place of its derivative's coefficients; ST is a plateau.
AMPLITUDE = np.array([0.15, -0.12, 1.0, -0.25, 0.0, 0.3, 0.0], np.float32)
ANGLE = np.array([-1.05, -0.26, 0.0, 0.26, 0.75, 1.57, -0.02], np.float32)
WIDTH = np.array([0.25, 0.1, 0.1, 0.1, 0.3, 0.4, 0.02], np.float32)

ARRHYTHMIA_SHARES = (0.828, 0.025, 0.066, 0.007, 0.074)
PTB_SHARES = (0.28, 0.72)
BEATS_PER_PATIENT = 100

SIZES = {"ptb": {"train": 12_000, "test": 3_000}, "arrhythmia": {"train": 20_000, "test": 5_000}}
DATA_SEED = 20030325
PATIENT_TEST_SEED = 7
PATIENT_TEST_FRACTION = 0.2


@dataclass
class Shape:
    """Waves of beats: each (num_beats, 7) in the order of `WAVES`; angles and widths in radians of the cycle."""

    amplitude: NDArray[np.floating]
    angle: NDArray[np.floating]
    width: NDArray[np.floating]

    def select(self, index: NDArray[np.integer] | NDArray[np.bool_]) -> "Shape":
        return Shape(self.amplitude[index], self.angle[index], self.width[index])


def ptb(data_dir: Path, protocol: str) -> Parts:  # noqa: ARG001 (a source's signature; this one needs no files)
    return _in_order(synthetic_ptb, "ptb")


def arrhythmia(data_dir: Path, protocol: str) -> Parts:  # noqa: ARG001
    if protocol == "beat-random":
        return _in_order(synthetic_arrhythmia, "arrhythmia")
    beats = cache(partial(synthetic_arrhythmia, sum(SIZES["arrhythmia"].values()), DATA_SEED))
    sides = cache(lambda: by_patient(beats(), PATIENT_TEST_FRACTION, PATIENT_TEST_SEED))
    return Parts(
        load_train=lambda: beats().select(sides()[0]),
        load_test=lambda: beats().select(sides()[1]),
        badge=lambda: "patient-disjoint",
    )


def synthetic_arrhythmia(num_beats: int, seed: int) -> Beats:
    """Beats of the classes N S V F Q, about as unbalanced as MIT-BIH's; any patient may have any class.

    Raises:
        ValueError: `num_beats` is not one for each class.
    """
    random = np.random.default_rng(seed)
    target = draw_target(num_beats, ARRHYTHMIA_SHARES, random)
    group = random.integers(_num_patients(num_beats), size=num_beats)
    own, rr = _draw_shapes(group, random)
    following = deepcopy(own)
    before, after = make_arrhythmic(target, own, following, random)
    signal = _render(own, following, rr, after, group, random)
    return _beats("arrhythmia", signal, rr, target, group, before, after, seed)


def synthetic_ptb(num_beats: int, seed: int) -> Beats:
    """Beats of healthy patients (normal) and of patients with myocardial infarction (MI), 28 % to 72 %.

    Raises:
        ValueError: `num_beats` is not one for each class.
    """
    random = np.random.default_rng(seed)
    target = draw_target(num_beats, PTB_SHARES, random)
    num_patients = _num_patients(num_beats)
    num_healthy = max(1, round(PTB_SHARES[0] * num_patients))
    group = np.where(
        target == 0,
        random.integers(num_healthy, size=num_beats),
        random.integers(num_healthy, num_patients, size=num_beats),
    )
    own, rr = _draw_shapes(group, random)
    make_infarcted(np.flatnonzero(target == 1), own, group, random)
    after = random.normal(1.0, 0.04, num_beats)
    signal = _render(own, own, rr, after, group, random)
    before = random.normal(1.0, 0.04, num_beats)
    return _beats("ptb", signal, rr, target, group, before, after, seed)


def _in_order(draw: Callable[[int, int], Beats], name: str) -> Parts:
    sizes = SIZES[name]
    beats = cache(partial(draw, sum(sizes.values()), DATA_SEED))
    return Parts(
        load_train=lambda: beats().select(torch.arange(sizes["train"])),
        load_test=lambda: beats().select(torch.arange(sizes["train"], sum(sizes.values()))),
        badge=lambda: "beat-random",
    )


def _num_patients(num_beats: int) -> int:
    return max(10, num_beats // BEATS_PER_PATIENT)


def draw_target(num_beats: int, shares: tuple[float, ...], random: Generator) -> NDArray[np.int64]:
    """Labels in exact shares, the largest class taking what rounding leaves, in random order."""
    if num_beats < len(shares):
        raise ValueError(f"{num_beats} synthetic beats are not one for each of {len(shares)} classes")
    counts = np.maximum(1, np.round(np.array(shares) * num_beats)).astype(np.int64)
    counts[np.argmax(shares)] += num_beats - counts.sum()
    return random.permutation(np.repeat(np.arange(len(shares)), counts))


def draw_patients(num_patients: int, random: Generator) -> tuple[Shape, NDArray[np.float64]]:
    """Each patient's waves, (num_patients, 7), and usual RR interval in seconds."""
    size = (num_patients, len(WAVES))
    patients = Shape(
        AMPLITUDE * random.lognormal(0.0, 0.3, size),
        ANGLE * random.normal(1.0, 0.08, size),
        WIDTH * random.lognormal(0.0, 0.15, size),
    )
    return patients, np.clip(random.lognormal(np.log(0.78), 0.17, num_patients), 0.5, 1.2)


def vary(patients: Shape, group: NDArray[np.int64], random: Generator) -> Shape:
    """Waves of beats: those of each beat's patient, a little different from beat to beat."""
    mean, size = patients.select(group), (len(group), len(WAVES))
    return Shape(
        (mean.amplitude * random.lognormal(0.0, 0.07, size)).astype(np.float32),
        (mean.angle * random.normal(1.0, 0.02, size)).astype(np.float32),
        (mean.width * random.lognormal(0.0, 0.04, size)).astype(np.float32),
    )


def _draw_shapes(group: NDArray[np.int64], random: Generator) -> tuple[Shape, NDArray[np.float64]]:
    """Waves and RR interval, in seconds, of beats of these patients."""
    patients, rr = draw_patients(int(group.max()) + 1, random)
    return vary(patients, group, random), rr[group] * random.normal(1.0, 0.03, len(group))


def make_arrhythmic(
    target: NDArray[np.int64], own: Shape, following: Shape, random: Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Change the waves of beats, and of the beats that follow them, to those of their classes N S V F Q.

    Returns:
        RR intervals (num_beats,) before and after each beat, over the patient's usual one.
    """
    before = random.normal(1.0, 0.04, len(target))
    after = random.normal(1.0, 0.04, len(target))
    _make_supraventricular(np.flatnonzero(target == 1), own, following, before, after, random)
    for label in (2, 3):
        where = np.flatnonzero(target == label)
        degree = random.uniform(0.5, 1.0, len(where)) if label == 2 else random.uniform(0.1, 0.7, len(where))
        _make_ventricular(where, degree, own, before, after, random)
    _make_paced(np.flatnonzero(target == 4), own, following, random)
    return before, after


def _make_supraventricular(
    where: NDArray[np.int64],
    own: Shape,
    following: Shape,
    before: NDArray[np.float64],
    after: NDArray[np.float64],
    random: Generator,
) -> None:
    """Early, with a P wave of another origin; half of them in a run, the others before a pause."""
    number = len(where)
    before[where] = random.uniform(0.6, 0.93, number)
    in_run = random.random(number) < 0.5
    after[where] = np.where(in_run, random.uniform(0.6, 0.95, number), random.uniform(1.0, 1.3, number))
    own.amplitude[where, P] *= random.uniform(-1.0, 0.6, number)
    following.amplitude[where, P] *= np.where(in_run, random.uniform(-1.0, 0.6, number), 1.0)
    own.amplitude[where, S] *= random.uniform(1.0, 1.8, number)
    own.amplitude[where, T] *= random.uniform(0.5, 1.1, number)


def _make_ventricular(
    where: NDArray[np.int64],
    degree: NDArray[np.float64],
    own: Shape,
    before: NDArray[np.float64],
    after: NDArray[np.float64],
    random: Generator,
) -> None:
    """Wide QRS without P, T against it, early and before a pause; a fusion beat is so by a smaller `degree`."""
    number = len(where)
    qrs = np.ix_(where, np.array([Q, R, S]))
    own.width[qrs] *= 1 + degree[:, None] * random.uniform(1.0, 2.2, (number, 1))
    own.amplitude[where, R] *= 1 + degree * random.uniform(-0.2, 0.8, number)
    own.amplitude[where, S] *= 1 + degree * random.uniform(0.0, 2.0, number)
    own.amplitude[where, P] *= 1 - degree
    own.amplitude[where, T] *= 1 - degree * random.uniform(1.2, 3.0, number)
    before[where] -= degree * random.uniform(0.0, 0.4, number)
    after[where] += degree * random.uniform(0.0, 0.4, number)


def _make_paced(where: NDArray[np.int64], own: Shape, following: Shape, random: Generator) -> None:
    """A spike, then a wide QRS of the other direction, at a constant rate: the next beat is paced as well."""
    height = random.uniform(0.3, 1.2, len(where))
    widening = random.uniform(1.5, 3.0, (len(where), 1))
    delay = random.uniform(0.15, 0.4, (len(where), 1))
    downward = random.uniform(-1.2, 0.5, len(where))
    for shape in (own, following):
        shape.amplitude[where, SPIKE] = height
        shape.amplitude[where, P] = 0
        shape.amplitude[where, R] *= downward
        shape.amplitude[where, T] *= -np.sign(downward) * 1.3
        qrs = np.ix_(where, np.array([Q, R, S]))
        shape.width[qrs] *= widening
        shape.angle[qrs] += delay


def make_infarcted(where: NDArray[np.int64], own: Shape, group: NDArray[np.int64], random: Generator) -> None:
    """ST elevation, deep and wide Q, lower R and inverted T, each to the patient's own degree."""
    st, q, r, t = random.uniform(0.0, 1.0, (4, int(group.max()) + 1))[:, group[where]]
    own.amplitude[where, ST] += 0.3 * st
    own.amplitude[where, Q] *= 1 + 3 * q
    own.width[where, Q] *= 1 + 0.6 * q
    own.amplitude[where, R] *= 1 - 0.4 * r
    own.amplitude[where, T] *= 1 - 1.8 * t


def _render(
    own: Shape,
    following: Shape,
    rr: NDArray[np.float64],
    after: NDArray[np.float64],
    group: NDArray[np.int64],
    random: Generator,
) -> Array:
    """The beat's waves and the next beat's, `after` RR intervals later, with baseline wander and noise.

    Returns:
        (num_beats, 187) at 125 Hz, from the R peak on, in units of the typical R amplitude.
    """
    time_s = np.arange(NUM_SAMPLES) / RATE_HZ
    phase = (2 * np.pi * time_s / rr[:, None]).astype(np.float32)
    # The paper's alpha: QRS and T shorten with the square root of RR, not with RR.
    stretch = (1 / np.sqrt(rr)).astype(np.float32)[:, None]
    signal = np.zeros_like(phase)
    for shape, onset in ((own, 0.0), (following, 2 * np.pi * after)):
        centre = shape.angle * stretch + np.broadcast_to(onset, len(rr)).astype(np.float32)[:, None]
        width = shape.width * stretch
        for wave in range(len(WAVES)):
            distance = (phase - centre[:, wave, None]) / width[:, wave, None]
            signal += shape.amplitude[:, wave, None] * np.exp(-0.5 * distance**2)
    wander_hz, wander_phase = random.uniform(0.1, 0.4, len(rr)), random.uniform(0, 2 * np.pi, len(rr))
    wander = np.sin(2 * np.pi * wander_hz[:, None] * time_s + wander_phase[:, None])
    signal += (random.uniform(0.0, 0.1, (len(rr), 1)) * wander).astype(np.float32)
    noise = random.uniform(0.005, 0.04, int(group.max()) + 1).astype(np.float32)[group]
    signal += noise[:, None] * random.standard_normal(signal.shape, np.float32)
    return signal


def _beats(
    name: str,
    signal: Array,
    rr: NDArray[np.float64],
    target: NDArray[np.int64],
    group: NDArray[np.int64],
    before: NDArray[np.float64],
    after: NDArray[np.float64],
    seed: int,
) -> Beats:
    """`before` and `after`: RR intervals over the patient's usual one, which stands for the last ten and the record."""
    log_before, log_after = np.log(before), np.log(after)
    steady = np.zeros_like(log_before)
    intervals = np.stack([log_before, log_after, log_before - log_after, steady, log_before, log_after], axis=1)
    length = np.minimum(np.round(1.2 * rr * RATE_HZ), NUM_SAMPLES).astype(np.int64)
    scaled = scale_and_pad(signal, length)
    tensor = torch.from_numpy(scaled).unsqueeze(1)
    return Beats(
        signal=tensor,
        target=torch.from_numpy(target),
        valid_length=measure_length(tensor),
        classes=CLASSES[name],
        rate_hz=RATE_HZ,
        source=f"synthetic {name} (seed {seed})",
        fingerprint=derive(f"synthetic-{name}", scaled, target, group),
        group=torch.from_numpy(group),
        intervals=torch.from_numpy(intervals.astype(np.float32)),
    )
