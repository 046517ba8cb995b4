import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from experiments.tables import BARS, confusion_table, duration, interval, say, signed, sparkline

NUMBERS = st.floats(-1e6, 1e6)


@given(st.lists(NUMBERS, min_size=1, max_size=60), st.integers(2, 30))
def test_a_sparkline_has_at_most_its_width_and_spans_lowest_to_highest(values: list[float], width: int) -> None:
    line = sparkline(values, width)
    assert len(line) == min(len(values), width)
    assert set(line) <= set(BARS)
    if len(values) <= width:
        assert line[values.index(min(values))] == BARS[0]
        assert line[values.index(max(values))] == (BARS[-1] if max(values) > min(values) else BARS[0])


def test_a_sparkline_of_a_known_series() -> None:
    assert sparkline([]) == ""
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == BARS
    assert sparkline([7, 0, 7]) == "█▁█"
    assert sparkline([2.0, 2.0]) == "▁▁"
    assert sparkline(range(101), 3) == f"▁{BARS[round(3.5)]}█"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0.0 s"),
        (4.24, "4.2 s"),
        (59.9, "59.9 s"),
        (59.96, "1 min 00 s"),
        (60, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.7, "1 h 00 min"),
        (7800, "2 h 10 min"),
        (90_000, "25 h 00 min"),
    ],
)
def test_duration(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_interval_and_sign() -> None:
    assert interval(0.1, 0.25) == "[0.100, 0.250]"
    assert interval(-0.1, 0.25, sign=True) == "[-0.100, +0.250]"
    assert interval(None, 0.25) == interval(0.1, None) == ""
    assert (signed(0.0126), signed(-0.5), signed(float("nan"))) == ("+0.013", "-0.500", "–")


def cells(confusion: list[list[float]], classes: list[str]) -> list[list[str]]:
    """The table as it is read: rows of cells, the class's name first."""
    stream = io.StringIO()
    Console(file=stream, width=160, color_system=None).print(confusion_table(confusion, classes, "Title"))
    lines = [line for line in stream.getvalue().splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


@given(st.lists(st.lists(st.integers(0, 5000), min_size=3, max_size=3), min_size=3, max_size=3))
def test_each_row_of_a_confusion_table_sums_to_100(confusion: list[list[float]]) -> None:
    rows = cells(confusion, ["N", "S", "V"])
    assert [row[0] for row in rows] == ["N", "S", "V"]
    for counts, row in zip(confusion, rows, strict=True):
        assert row[-1] == f"{sum(counts):,}"
        if not sum(counts):
            assert row[1:-1] == ["–"] * 3
            continue
        assert sum(map(float, row[1:-1])) == pytest.approx(100, abs=0.16)
        for count, share in zip(counts, row[1:-1], strict=True):
            assert float(share) == pytest.approx(100 * count / sum(counts), abs=0.051)


def test_a_line_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    line = "seed 0 [bold]transfer[/bold] " + "word " * 60
    say(line)
    assert capsys.readouterr().out == f"{line}\n"
