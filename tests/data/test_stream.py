from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import torch

from data.batches import Resident
from data.known import CLASSES
from data.recorded import TEST_SEED, TEST_SHARE
from data.split import stratified
from data.store import read_recorded
from data.stream import Stream
from tests.data.test_store import BEATS, recorded, write


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """500 beats in row groups of 32, streamed in windows of 64."""
    monkeypatch.setattr("data.store.BEATS_A_GROUP", 32)
    monkeypatch.setattr("data.stream.WINDOW", 64)
    return write(tmp_path / "a.parq", recorded(BEATS))


def epoch(stream: Stream, batch_size: int, seed: int) -> list[torch.Tensor]:
    batches = stream.batches(batch_size, seed)
    return [batches[number] for number in range(len(batches))]


@pytest.mark.parametrize("batch_size", [1, 20, 33, 64])
def test_an_epoch_holds_every_training_beat_once(path: Path, batch_size: int) -> None:
    stream = Stream(path, whole=False)
    batches = epoch(stream, batch_size, 3)
    expected, _ = stratified(BEATS.labels, TEST_SHARE, TEST_SEED)
    assert torch.equal(torch.cat(batches).sort().values, expected)
    sizes = {len(index) for index in batches}
    assert max(sizes) - min(sizes) <= 1
    assert len(batches) == len(epoch(stream, batch_size, 4)) == max(1, round(len(stream) / batch_size))


def test_the_beats_are_those_of_the_file(path: Path) -> None:
    stream, resident = Stream(path, whole=True), Resident(read_recorded(path).beats, "cpu")
    assert stream.labels is not None and resident.labels is not None and torch.equal(stream.labels, resident.labels)
    for index in epoch(stream, 30, 0):
        for streamed, held in zip(stream.take(index)[:3], resident.take(index)[:3], strict=True):
            assert streamed is not None and held is not None and torch.equal(streamed, held)


def test_an_epoch_is_shuffled_and_follows_from_its_seed(path: Path) -> None:
    stream = Stream(path, whole=True)
    first, again, other = (torch.cat(epoch(stream, 30, seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert not torch.equal(first, first.sort().values)
    middle = stream.batches(30, 0)[7]
    assert torch.equal(middle, epoch(stream, 30, 0)[7])


def test_memory_holds_two_windows(path: Path) -> None:
    stream = Stream(path, whole=True)
    read = 0
    original = stream._read

    def count(*args: object) -> None:
        nonlocal read
        read += 1
        original(*args)  # pyright: ignore[reportArgumentType]

    stream._read = count  # pyright: ignore[reportAttributeAccessIssue]
    for index in epoch(stream, 30, 0):
        stream.take(index)
    assert stream.held.shape == (4, 32, 187)
    assert read == 16


def test_row_groups_too_large_are_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.stream.MOST_HELD", 100)
    with pytest.raises(ValueError, match="row groups of 32 beats, too large to stream: write it again"):
        Stream(path, whole=True)


def test_a_batch_larger_than_a_window_is_refused(path: Path) -> None:
    with pytest.raises(ValueError, match="a batch of 65 beats"):
        Stream(path, whole=True).batches(65, 0)


def test_the_course_layout_streams(tmp_path: Path) -> None:
    signal = pl.DataFrame(BEATS.signal[:, 0].numpy(), schema=[str(sample) for sample in range(187)])
    signal.with_columns(target=pl.Series(BEATS.labels.numpy())).write_parquet(tmp_path / "b.parq", row_group_size=50)
    stream = Stream(tmp_path / "b.parq", whole=True, classes=CLASSES["arrhythmia"])
    assert (len(stream), stream.about.classes) == (500, BEATS.classes)
    signal, length, target, _ = stream.take(torch.tensor([499, 3, 77]))
    chosen = BEATS.select(torch.tensor([499, 3, 77]))
    assert target is not None
    assert torch.equal(signal, chosen.signal) and torch.equal(length, chosen.valid_length)
    assert torch.equal(target, chosen.labels)


def test_damage_is_told_where_it_is_met(path: Path) -> None:
    signal = BEATS.signal.clone()
    signal[400, 0, 5] = 3.0
    stream = Stream(write(path, recorded(replace(BEATS, signal=signal))), whole=True)
    with pytest.raises(ValueError, match="row 400, column 5: signal 3 is outside"):
        for index in epoch(stream, 30, 0):
            stream.take(index)
