"""Which rows a strip plot shows, and that what it draws is there."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex
from numpy.typing import NDArray

from data.pictures import COLOURS
from data.record import Record
from finetune.strip import NUM_ROWS, Labelled, draw_strip, rarest_rows, rows_from, write_strip
from tests.data.test_record import wrsamp

RATE_HZ = 50
CLASSES = ("N", "S", "V")


def record_of(folder: Path, seconds: float) -> Record:
    signal = np.random.default_rng(0).normal(0, 0.1, round(seconds * RATE_HZ))
    wrsamp(folder / "a", signal, RATE_HZ)
    return Record.open(folder / "a")


def every_second(record: Record, label: NDArray[np.integer]) -> Labelled:
    sample = np.arange(record.num_samples // RATE_HZ) * RATE_HZ + RATE_HZ // 2
    return Labelled(sample, label, CLASSES)


def test_rows_are_those_where_the_rare_classes_are_most(tmp_path: Path) -> None:
    record = record_of(tmp_path, 200)
    label = np.zeros(200, np.int16)
    label[[35, 36, 37]] = 2  # row 3; V: 4 beats
    label[112] = 2  # row 11
    label[[5, 66, 67, 150, 151, 152]] = 1  # S: 6, rows 0, 6, 15
    rows = [start // (10 * RATE_HZ) for start in rarest_rows(record, every_second(record, label))]
    assert rows == [0, 1, 3, 6, 11, 15]  # all with one, and the first of the others


def test_a_rare_class_does_not_take_all_rows_where_there_are_others(tmp_path: Path) -> None:
    record = record_of(tmp_path, 200)
    label = np.zeros(200, np.int16)
    label[::10] = 2  # V in every row: 20
    label[[57, 58, 157]] = 1  # S: 3
    rows = [start // (10 * RATE_HZ) for start in rarest_rows(record, every_second(record, label))]
    assert {5, 15} < set(rows) and len(rows) == NUM_ROWS and rows == sorted(rows)


@pytest.mark.parametrize(("seconds", "num_rows"), [(200, NUM_ROWS), (25, 3), (8, 1)])
def test_a_record_of_one_class_shows_its_beginning(seconds: float, num_rows: int, tmp_path: Path) -> None:
    record = record_of(tmp_path, seconds)
    beats = every_second(record, np.zeros(int(seconds), np.int16))
    assert rarest_rows(record, beats) == [row * 10 * RATE_HZ for row in range(num_rows)]


def test_rows_follow_each_other_from_a_chosen_start(tmp_path: Path) -> None:
    record = record_of(tmp_path, 100)
    assert rows_from(record, 1.5) == [75 + row * 500 for row in range(NUM_ROWS)]
    assert rows_from(record, 85) == [85 * RATE_HZ, 95 * RATE_HZ]
    for start_s in (-1, 100, np.nan):
        with pytest.raises(ValueError, match=r"--strip-start .*: a lasts from 0 to 100 s"):
            rows_from(record, start_s)


def test_each_beat_in_a_row_has_its_colour_and_its_class(tmp_path: Path) -> None:
    record = record_of(tmp_path, 30)
    label = np.arange(30, dtype=np.int16) % 3
    figure = draw_strip(record, every_second(record, label), [0, 5 * RATE_HZ], by_rarity=False)
    rows = figure.axes
    assert [text.get_text() for text in rows[0].texts] == [CLASSES[place] for place in label[:10]]
    assert [text.get_text() for text in rows[1].texts] == [CLASSES[place] for place in label[5:15]]
    for axes in rows:
        shown = [line for line in axes.lines if len(np.asarray(line.get_xdata()))]
        assert len(shown) == 11  # the signal, and ten beats over it
        for line, text in zip(shown[1:], axes.texts, strict=True):
            colour = COLOURS[CLASSES.index(text.get_text())]
            assert to_hex(line.get_color()).upper() == to_hex(text.get_color()).upper() == colour
            time_s = np.asarray(line.get_xdata())
            assert time_s.min() <= text.get_position()[0] <= time_s.max()
    assert rows[1].get_ylabel() == "0:00:05"
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["N, 10 beats", "S, 10 beats", "V, 10 beats"]


@pytest.mark.parametrize("name", ["s", "s.png", "s.svg"])
def test_a_picture_is_written_twice(name: str, tmp_path: Path) -> None:
    record = record_of(tmp_path, 12)
    written = write_strip(tmp_path / "new" / name, record, every_second(record, np.zeros(12, np.int16)), None)
    assert written == [tmp_path / "new" / "s.png", tmp_path / "new" / "s.svg"]
    assert all(path.stat().st_size > 1000 for path in written)


def test_a_row_without_beats_is_drawn(tmp_path: Path) -> None:
    record = record_of(tmp_path, 30)
    none = Labelled(np.array([29 * RATE_HZ]), np.array([0]), CLASSES)
    assert [len(axes.texts) for axes in draw_strip(record, none, [0, 20 * RATE_HZ], by_rarity=False).axes] == [0, 1]
