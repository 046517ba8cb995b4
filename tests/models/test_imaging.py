from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from torch import Tensor

from models.imaging import IMAGES, Fold, make_image

Beat = NDArray[np.float64]

LENGTHS = (187, 100, 32)
BEATS = st.sampled_from(LENGTHS).flatmap(
    # Sixteenths: many samples are equal, as the zeros after a beat are, and every one is exact in float32.
    lambda num_samples: arrays(np.float64, num_samples, elements=st.integers(0, 16).map(lambda value: value / 16))
)


def frames(beat: Beat, num_frames: int) -> Beat:
    """Piecewise aggregate approximation: every sample repeated `num_frames` times, cut into `num_frames` pieces."""
    return np.repeat(beat, num_frames).reshape(num_frames, -1).mean(1)


def angles(beat: Beat) -> Beat:
    return np.arccos(np.clip(2 * frames(beat, 48) - 1, -1, 1))


def gasf(beat: Beat) -> Beat:
    angle = angles(beat)
    return np.cos(angle[:, None] + angle[None, :])


def gadf(beat: Beat) -> Beat:
    angle = angles(beat)
    return np.sin(angle[:, None] - angle[None, :])


def mtf(beat: Beat) -> Beat:
    bins = np.searchsorted(np.quantile(beat, np.arange(1, 8) / 8), beat, side="left")
    counts = np.zeros((8, 8))
    for before, after in pairwise(bins):
        counts[before, after] += 1
    steps = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    field = steps[bins][:, bins]
    return np.stack([frames(column, 48) for column in np.stack([frames(row, 48) for row in field]).T], axis=1)


def recurrence(beat: Beat) -> Beat:
    frame = frames(beat, 49)
    states = [frame[start : start + 2] for start in range(48)]
    return np.array([[np.sqrt(np.mean((a - b) ** 2)) for b in states] for a in states])


def spectrogram(beat: Beat) -> Beat:
    padded = np.pad(beat, 16)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(32) / 32)
    wave = np.exp(-2j * np.pi * np.outer(np.arange(17), np.arange(32)) / 32)
    columns = [np.abs(wave @ (window * padded[start : start + 32])) for start in range(0, len(padded) - 31, 4)]
    return np.log(1 + np.stack(columns, axis=1) / 0.01)


def fold(beat: Beat) -> Beat:
    height, width = {187: (16, 12), 100: (12, 9), 32: (7, 5)}[len(beat)]
    image = np.zeros((height, width))
    for index, value in enumerate(beat):
        image[divmod(index, width)] = value
    return image


FORMULAS = {"fold": fold, "gasf": gasf, "gadf": gadf, "mtf": mtf, "recurrence": recurrence, "spectrogram": spectrogram}


def test_every_image_has_its_formula() -> None:
    assert FORMULAS.keys() == IMAGES.keys()


@pytest.mark.parametrize("name", IMAGES)
@settings(max_examples=12, deadline=None)
@given(beat=BEATS)
def test_as_the_formula_says(name: str, beat: Beat) -> None:
    drawn = make_image(name, len(beat))(torch.from_numpy(beat)[None, None])
    # Near 0 and 1, where a sine is the root of a small number, the Gramian fields feel float32.
    np.testing.assert_allclose(
        drawn[0, 0].numpy(), FORMULAS[name](beat), atol=2e-3 if name in ("gasf", "gadf") else 1e-4
    )


@pytest.mark.parametrize("name", IMAGES)
def test_as_the_formula_says_of_uneven_beats(name: str) -> None:
    beat = np.random.default_rng(0).random(187)
    drawn = make_image(name, 187)(torch.from_numpy(beat)[None, None])
    np.testing.assert_allclose(drawn[0, 0].numpy(), FORMULAS[name](beat), atol=1e-4)


@pytest.mark.parametrize("num_samples", LENGTHS)
@pytest.mark.parametrize("name", IMAGES)
def test_each_beat_and_each_lead_is_drawn_alone(name: str, num_samples: int) -> None:
    image, x = make_image(name, num_samples), torch.rand(3, 2, num_samples)
    drawn = image(x)
    assert drawn.shape == (3, 2, *image.size)
    assert drawn.dtype == torch.float32
    alone = torch.stack([torch.stack([image(lead[None, None])[0, 0] for lead in beat]) for beat in x])
    torch.testing.assert_close(drawn, alone)
    assert torch.equal(image(x), drawn)


@pytest.mark.parametrize(
    ("name", "size"),
    [("fold", (16, 12)), ("spectrogram", (17, 47)), *((name, (48, 48)) for name in ("gasf", "gadf", "mtf"))],
)
def test_sizes_of_a_beat_of_the_course(name: str, size: tuple[int, int]) -> None:
    assert make_image(name, 187).size == size


@pytest.mark.parametrize("value", [0.0, 0.4, 1.0, -3.0])
@pytest.mark.parametrize("name", IMAGES)
def test_a_constant_beat_is_finite_with_its_gradient(name: str, value: float) -> None:
    x = torch.full((1, 1, 187), value, requires_grad=True)
    drawn = make_image(name, 187)(x)
    assert drawn.isfinite().all()
    if name == "mtf":
        assert not drawn.requires_grad
    else:
        drawn.sum().backward()
        assert x.grad is not None
        assert x.grad.isfinite().all()


@pytest.mark.parametrize("name", IMAGES)
def test_nothing_to_learn_and_nothing_to_save(name: str) -> None:
    image = make_image(name, 187)
    assert list(image.parameters()) == []
    assert image.state_dict() == {}


@pytest.mark.parametrize("name", IMAGES)
def test_float32_under_autocast_and_of_bfloat16_beats(name: str) -> None:
    image, x = make_image(name, 187), torch.rand(2, 1, 187)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(image(x), image(x.float()))
        under = image(x)
    torch.testing.assert_close(under, image(x), atol=0, rtol=0)
    half = x.bfloat16()
    assert torch.equal(image(half), image(half.float()))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 2000))
def test_a_fold_is_the_beat_then_zeros(num_samples: int) -> None:
    image, x = Fold(num_samples), torch.rand(2, 1, num_samples)
    height, width = image.size
    assert 0 <= height * width - num_samples < width
    assert num_samples < 100 or abs(height / width - 4 / 3) < 0.25
    flat: Tensor = image(x).flatten(2)
    assert torch.equal(flat[..., :num_samples], x)
    assert not flat[..., num_samples:].any()


def test_the_fields_of_two_beats_differ_in_amplitude() -> None:
    image, x = make_image("gasf", 187), torch.rand(1, 1, 187)
    assert not torch.allclose(image(x), image(x / 2))


def test_an_unknown_image_lists_the_choices() -> None:
    with pytest.raises(ValueError, match=f"unknown image 'photo'; choose from {', '.join(IMAGES)}"):
        make_image("photo", 187)
