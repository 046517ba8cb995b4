import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from data import PARTS, load, load_split, parts
from data.beats import Beats, measure_length
from data.known import CLASSES
from data.own import SILENT, read_own
from data.published import read_course
from data.recorded import DS1, DS2, Recorded
from data.store import Writer, read_recorded
from data.synthetic import synthetic_arrhythmia

NUM_SAMPLES = 187
KINDS = ("csv", "parquet")
NO_RATE = "taken to be at 125 Hz"
SCALED = "each beat scaled to 0…1"


def beats_of(num_beats: int = 12, num_samples: int = NUM_SAMPLES) -> np.ndarray:
    """Rows of float32 within 0…1 that end at different samples."""
    signal = np.random.default_rng(0).random((num_beats, num_samples), np.float32) * 0.98 + 0.01
    signal[np.arange(num_samples) >= num_samples - np.arange(num_beats)[:, None]] = 0
    return signal


def table(signal: np.ndarray, **others: Sequence[Any]) -> pl.DataFrame:
    frame = pl.DataFrame(signal, schema=[str(sample) for sample in range(signal.shape[1])])
    return frame.with_columns(**{name: pl.Series(list(values)) for name, values in others.items()})


def write(frame: pl.DataFrame, path: Path) -> str:
    """The name by which the data set of this file goes."""
    if path.suffix == ".csv":
        frame.write_csv(path)
        return f"csv:{path}"
    frame.write_parquet(path)
    return f"parquet:{path}"


def read(name: str) -> Beats:
    kind, _, place = name.partition(":")
    return read_own(kind, Path(place)).beats


def lines(path: Path, *rows: Sequence[object]) -> str:
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    return f"csv:{path}"


def refused(name: str) -> str:
    with pytest.raises(ValueError) as caught:
        read(name)
    message = str(caught.value)
    assert type(caught.value) is ValueError and "\n" not in message
    assert message.startswith(name.partition(":")[2].partition("@")[0])
    return message


@pytest.mark.parametrize("kind", KINDS)
def test_beats_within_the_range_stay_as_they_are(kind: str, tmp_path: Path) -> None:
    signal = beats_of()
    beats = read(write(table(signal, target=[0, 1, 2] * 4), tmp_path / f"a.{kind}"))
    np.testing.assert_array_equal(beats.signal[:, 0].numpy(), signal)
    assert beats.labels.tolist() == [0, 1, 2] * 4
    assert beats.valid_length.tolist() == [187 - number for number in range(12)]
    assert (beats.classes, beats.rate_hz, beats.source) == (("0", "1", "2"), 125.0, f"a.{kind}")
    assert (beats.remarks, beats.dropped, beats.group) == ((NO_RATE,), {}, None)


@pytest.mark.parametrize("kind", KINDS)
def test_columns_are_known_by_name_wherever_they_stand(kind: str, tmp_path: Path) -> None:
    signal = beats_of(6)
    frame = table(signal, Class=["b", "a"] * 3, Subject=["x", "y", "z"] * 2, record=[7, 8] * 3, fold=[1, 9, 10] * 2)
    shuffled = frame.select("fold", "Class", *(str(sample) for sample in range(187)), "record", "Subject")
    found = read_own(kind, Path(write(shuffled, tmp_path / f"a.{kind}").partition(":")[2]))
    np.testing.assert_array_equal(found.beats.signal[:, 0].numpy(), signal)
    assert (found.beats.classes, found.beats.labels.tolist()) == (("a", "b"), [1, 0] * 3)
    assert found.beats.group is not None and found.beats.group.tolist() == [0, 1, 2] * 2
    assert found.origin.to_pydict() == {
        "patient": ["x", "y", "z"] * 2,
        "record": ["7", "8"] * 3,
        "fold": [1, 9, 10] * 2,
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([10, 9, -1], ("-1", "9", "10")),
        ([1.0, 0.0, 2.0], ("0", "1", "2")),
        (["V", "N", "S"], ("N", "S", "V")),
        (["10", "9", "x"], ("10", "9", "x")),
        (["2.0", "2", "1"], ("1", "2")),
    ],
)
def test_labels_are_numbers_or_words(kind: str, labels: list[Any], classes: tuple[str, ...], tmp_path: Path) -> None:
    beats = read(write(table(beats_of(), y=labels * 4), tmp_path / f"a.{kind}"))
    assert beats.classes == classes
    spelt = {label: f"{float(label):g}" if "x" not in labels and "V" not in labels else label for label in labels}
    assert [classes[label] for label in beats.labels] == [spelt[label] for label in labels * 4]


def test_a_categorical_label_is_words(tmp_path: Path) -> None:
    frame = table(beats_of(4), label=["N", "V", "N", "V"]).with_columns(pl.col("label").cast(pl.Categorical))
    assert read(write(frame, tmp_path / "a.parquet")).classes == ("N", "V")


@pytest.mark.parametrize("kind", KINDS)
def test_beats_without_labels(kind: str, tmp_path: Path) -> None:
    name = write(table(beats_of()), tmp_path / f"a.{kind}")
    beats = read(name)
    assert (beats.target, beats.classes, len(beats)) == (None, (), 12)
    assert [len(load(name, part, tmp_path)) for part in PARTS] == [10, 2]


BEAT, OTHER = [0.5, 1.0, 0.25, 0.75, 0.0], [0.25, 0.5, 1.0, 0.0, 0.0]
NUMBERS = ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize(
    "rows",
    [
        [[*BEAT, 0], [*OTHER, 1], [*BEAT, 1], [*OTHER, 0]],
        [[*BEAT, "N"], [*OTHER, "V"], [*BEAT, "V"], [*OTHER, "N"]],
        [[0, *BEAT, 0], [1, *OTHER, 1], [2, *BEAT, 1], [3, *OTHER, 0]],
        [[*NUMBERS, "target"], [*BEAT, 0], [*OTHER, 1], [*BEAT, 1], [*OTHER, 0]],
        [["", *NUMBERS, "y"], [0, *BEAT, 0], [1, *OTHER, 1], [2, *BEAT, 1], [3, *OTHER, 0]],
        [["Unnamed: 0", *NUMBERS, "y"], [0, *BEAT, 0], [1, *OTHER, 1], [2, *BEAT, 1], [3, *OTHER, 0]],
        [["", *NUMBERS, "y"], [7, *BEAT, 0], [8, *OTHER, 1], [9, *BEAT, 1], [10, *OTHER, 0]],
        [["class", "a", "b", "c", "d", "e"], [0, *BEAT], [1, *OTHER], [1, *BEAT], [0, *OTHER]],
        [["class", *NUMBERS], [0, *BEAT], [1, *OTHER[:3], "", ""], [1, *BEAT], [0, *OTHER[:3], "NaN", "nan"]],
        [["t0", "t0.008", "t0.016", "t0.024", "t0.032", "y"], [*BEAT, 0], [*OTHER, 1], [*BEAT, 1], [*OTHER, 0]],
    ],
    ids=["kaggle", "words", "index", "header", "pandas", "pandas twice", "R", "letters", "missing", "seconds"],
)
def test_forms_of_csv(rows: list[list[object]], tmp_path: Path) -> None:
    beats = read(lines(tmp_path / "a.csv", *rows))
    np.testing.assert_array_equal(beats.signal[:, 0, :5].numpy(), [BEAT, OTHER, BEAT, OTHER])
    assert beats.labels.tolist() == [0, 1, 1, 0]
    assert beats.remarks == (NO_RATE, "padded from 5 to 187 samples")


@pytest.mark.parametrize("header", [NUMBERS, ["", *NUMBERS], ["a", "b", "c", "d", "e"]])
def test_a_header_without_a_label(header: list[str], tmp_path: Path) -> None:
    rows = [BEAT, OTHER, BEAT] if header[0] else [[number, *BEAT] for number in range(3)]
    beats = read(lines(tmp_path / "a.csv", header, *rows))
    assert (len(beats), beats.target) == (3, None)


def test_line_ends_blanks_and_byte_order_marks_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbf\r\na, b,target\r\n0.5, 1,N\r\n\r\n0.25,0.5,N\r\n\r\n")
    assert read(f"csv:{path}").signal[:, 0, :2].tolist() == [[0.5, 1.0], [0.25, 0.5]]


def test_pandas_indices_are_not_signal_but_may_be_patients(tmp_path: Path) -> None:
    arrow = table(beats_of(4), target=[0, 1, 0, 1], __index_level_0__=[9, 8, 7, 6], patient=[1, 1, 2, 2]).to_arrow()
    index = '{"index_columns": ["__index_level_0__", "patient"]}'
    pq.write_table(arrow.replace_schema_metadata({"pandas": index}), tmp_path / "a.parquet")
    beats = read(f"parquet:{tmp_path / 'a.parquet'}")
    assert beats.signal.shape == (4, 1, 187) and beats.remarks == (NO_RATE,)
    assert beats.group is not None and beats.group.tolist() == [1, 1, 2, 2]


def test_an_index_without_a_name_is_not_signal(tmp_path: Path) -> None:
    frame = table(beats_of(4), target=[0, 1, 0, 1]).with_row_index("Unnamed: 0").with_columns(pl.col("Unnamed: 0") + 5)
    assert read(write(frame, tmp_path / "a.parquet")).remarks == (NO_RATE,)
    jumps = frame.with_columns(pl.col("Unnamed: 0") * 2)
    assert "has no name and does not count the rows" in refused(write(jumps, tmp_path / "b.parquet"))


def test_a_long_beat_is_cropped_and_a_short_one_padded(tmp_path: Path) -> None:
    long, short = beats_of(4, 300), beats_of(4, 100)
    cropped = read(write(table(long, y=[0, 1, 0, 1]), tmp_path / "long.csv"))
    padded = read(write(table(short, y=[0, 1, 0, 1]), tmp_path / "short.parquet") + "@125")
    np.testing.assert_array_equal(cropped.signal[:, 0].numpy(), long[:, :187])
    np.testing.assert_array_equal(padded.signal[:, 0].numpy(), np.pad(short, ((0, 0), (0, 87))))
    assert cropped.remarks == (NO_RATE, "cropped from 300 to 187 samples")
    assert padded.remarks == ("padded from 100 to 187 samples",)


def wave(seconds: np.ndarray) -> np.ndarray:
    """A beat in mV that starts at its peak, and does not end where it started."""
    return 1.5 * np.exp(-((seconds / 0.05) ** 2)) + 0.3 * np.exp(-(((seconds - 0.3) / 0.06) ** 2)) + seconds


@pytest.mark.parametrize("rate_hz", [100, 250, 360, 360.5, 1000])
def test_another_rate_is_resampled_up_to_the_end_of_each_beat(rate_hz: float, tmp_path: Path) -> None:
    num_samples = int(rate_hz * 1.4)
    durations = (1.0, 0.6, 1.0, 0.8)
    time = np.arange(num_samples) / rate_hz
    signal = np.array([np.where(time < duration, wave(time), 0) for duration in durations])
    beats = read(write(table(signal, y=[0, 1, 0, 1]), tmp_path / "a.csv") + f"@{rate_hz}")
    assert beats.remarks[0] == f"resampled from {rate_hz:g} to 125 Hz" and beats.remarks[-1] == SCALED
    for row, duration in zip(beats.signal[:, 0].numpy(), durations, strict=True):
        expected = wave(np.arange(round(125 * duration)) / 125)
        expected = (expected - expected.min()) / np.ptp(expected)
        np.testing.assert_allclose(row[: len(expected)], expected, atol=0.03)
        assert not row[len(expected) + 1 :].any()


def test_what_follows_the_last_at_may_belong_to_the_name(tmp_path: Path) -> None:
    frame = table(beats_of(4), y=[0, 1, 0, 1])
    assert read(write(frame, tmp_path / "a@360.csv")).remarks == (NO_RATE,)
    (tmp_path / "a@360.csv").rename(tmp_path / "b@360")
    assert read(f"csv:{tmp_path / 'b@360'}").remarks == (NO_RATE,)
    assert read(f"csv:{tmp_path / 'b@360'}@250").remarks[0] == "resampled from 250 to 125 Hz"
    assert f"{tmp_path / 'b@x'} does not exist" in refused(f"csv:{tmp_path / 'b@x'}")
    for rate in ("0", "-125", "nan", "inf", "1e9"):
        assert f"sampling rate {rate} Hz is not within 10…100000" in refused(f"csv:{tmp_path / 'b@360'}@{rate}")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("unit", [1e-30, 1e-3, 1.0, 1e30])
def test_other_units_are_scaled(kind: str, unit: float, tmp_path: Path) -> None:
    raw = np.array([[-0.5, 1.5, 0.5, 0.0], [0.25, -0.25, 1.75, 0.5], [2.0, 2.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    beats = read(write(table(raw * unit, y=[0, 1, 0, 1]), tmp_path / f"a.{kind}"))
    expected = [[0.0, 1.0, 0.5, 0.0], [0.25, 0.0, 1.0, 0.375], [0.0] * 4]
    np.testing.assert_allclose(beats.signal[:, 0, :4].numpy(), expected, rtol=1e-6)
    assert beats.remarks == (NO_RATE, "padded from 4 to 187 samples", SCALED, "1 flat beats became zero")
    assert (beats.dropped, beats.labels.tolist()) == ({SILENT: 1}, [0, 1, 0])


def test_integers_are_scaled(tmp_path: Path) -> None:
    raw = np.array([[512, 1023, 0, 0], [100, 200, 300, 0]], np.int16)
    beats = read(write(table(raw, y=[1, 1]), tmp_path / "a.parquet"))
    np.testing.assert_allclose(beats.signal[:, 0, :4].numpy(), [[0, 1, 0, 0], [0, 0.5, 1, 0]])


def test_a_hair_outside_the_range_is_clipped(tmp_path: Path) -> None:
    beats = read(write(table(np.array([[1.0005, -5e-4, 0.5], [0.1, 1.0, 0.2]]), y=[0, 0]), tmp_path / "a.csv"))
    np.testing.assert_array_equal(beats.signal[0, 0, :3].numpy(), np.array([1, 0, 0.5], np.float32))
    assert SCALED not in beats.remarks


def test_silent_beats_are_dropped_with_all_that_is_known_of_them(tmp_path: Path) -> None:
    signal = beats_of(6, 200)
    signal[1], signal[4, :187] = 0, 0
    found = read_own("csv", Path(write(table(signal, y=[*"abaaba"], patient=[*"uvwxyz"]), tmp_path / "a.csv")[4:]))
    assert (len(found.beats), found.beats.dropped) == (4, {SILENT: 2})
    assert [found.beats.classes[label] for label in found.beats.labels] == [*"aaaa"]
    assert found.origin["patient"].to_pylist() == [*"uwxz"]


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    hnp.arrays(
        np.float64,
        st.tuples(st.integers(2, 9), st.integers(2, 200)),
        elements=st.floats(-(2.0**127), 2.0**127, width=32) | st.just(0.0),
    ),
    st.sampled_from(KINDS),
)
def test_no_beat_gets_lost(tmp_path_factory: pytest.TempPathFactory, signal: np.ndarray, kind: str) -> None:
    name = write(table(signal, y=[0] * len(signal)), tmp_path_factory.getbasetemp() / f"any.{kind}")
    num_sounding = int(signal[:, :187].any(axis=1).sum())
    if num_sounding == 0:
        assert "without any signal and no other" in refused(name)
        return
    beats = read(name)
    assert len(beats) == num_sounding
    assert len(beats) + sum(beats.dropped.values()) == len(signal)
    assert beats.signal.isfinite().all() and 0 <= beats.signal.min() <= beats.signal.max() <= 1
    assert torch.equal(beats.valid_length, measure_length(beats.signal))


def put(frame: pl.DataFrame, row: int, column: str, value: object) -> pl.DataFrame:
    return frame.with_columns(pl.when(pl.arange(pl.len()) == row).then(pl.lit(value)).otherwise(column).alias(column))


BAD: dict[str, tuple[pl.DataFrame, list[str]]] = {
    "missing": (put(table(beats_of(), y=[0] * 12), 3, "5", None), ["row 3, column 5", "missing before"]),
    "nan": (put(table(beats_of(), y=[0] * 12), 3, "5", float("nan")), ["row 3, column 5", "missing before"]),
    "infinite": (put(table(beats_of(), y=[0] * 12), 3, "186", float("inf")), ["row 3, column 186", "inf is beyond"]),
    "beyond": (
        put(table(beats_of().astype(float), y=[0] * 12), 2, "0", -1e39),
        ["row 2, column 0", "-1e+39 is beyond"],
    ),
    "label missing": (put(table(beats_of(), y=[0] * 12), 4, "y", None), ["row 4, column y", "label is missing"]),
    "label blank": (put(table(beats_of(), y=["a"] * 12), 4, "y", " "), ["row 4, column y", "label is missing"]),
    "fraction": (table(beats_of(), y=[0.0, 1.0, 2.5, 0.0] * 3), ["row 2, column y", "not a whole number"]),
    "infinite label": (table(beats_of(), y=[0.0, 1.0, float("inf")] * 4), ["row 2, column y", "not a whole number"]),
    "measurement": (table(beats_of(), y=range(12)), ["column y has 12 different labels in 12 rows", "a measurement"]),
    "101 classes": (table(beats_of(1).repeat(404, 0), y=[*range(101)] * 4), ["101 different labels in 404 rows"]),
    "line break": (table(beats_of(), y=["a", "b\nc"] * 6), ["row 1, column y", "not one line of text"]),
    "two labels": (table(beats_of(), y=[0] * 12, target=[0] * 12), ["columns y and target are both the label"]),
    "two patients": (table(beats_of(), group=[0] * 12, subject=[0] * 12), ["group and subject are both the patient"]),
    "fold": (table(beats_of(), fold=["one"] * 12), ["column fold", "one"]),
    "fold missing": (table(beats_of(), fold=[1, None] * 6), ["row 1, column fold", "missing"]),
    "one column": (table(beats_of(12, 1), y=[0] * 12), ["has 1 signal columns"]),
    "order": (table(beats_of(), y=[0] * 12).select("y", "0", "10", "2"), ["column 2 is out of order"]),
    "age": (table(beats_of(), y=[0] * 12, age=[50] * 12), ["column age is neither numbered", "patient_id"]),
    "silent": (table(np.zeros((4, 9)), y=[0] * 4), ["has 4 rows without any signal and no other"]),
    "no rows": (table(beats_of(), y=[0] * 12).clear(), ["has no rows"]),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", BAD)
def test_what_is_no_table_of_beats_is_refused(case: str, kind: str, tmp_path: Path) -> None:
    frame, said = BAD[case]
    message = refused(write(frame, tmp_path / f"a.{kind}"))
    assert [part for part in said if part not in message] == [], message


BAD_CSV: dict[str, tuple[bytes, str]] = {
    "short line": (b"a,b,y\n1,2,0\n1,2\n", "row 1: Expected 3 columns, got 2"),
    "long line": (b"a,b,y\n1,2,0\n1,2,3,4\n", "row 1: Expected 3 columns, got 4"),
    "text": (b"a,b,y\n1,2,0\n1,x,0\n", "row 1, column b: invalid value 'x'"),
    "bool": (b"a,b,y\n1,true,0\n1,false,0\n", "row 0, column b: invalid value 'true'"),
    "not UTF-8": (b"a,b,y\n1,2,N\n1,2,\xff\n", "row 1, column y: invalid UTF8 data"),
    "header not UTF-8": (b"a,\xff,y\n1,2,N\n1,2,V\n", "byte 2 of the first line is not UTF-8"),
    "UTF-16": ("a,b,y\n1,2,N\n".encode("utf-16"), "byte 0 of the first line is not UTF-8"),
    "semicolons": (b"a;b;y\n1;2;N\n1;2;V\n", "the first line has no comma"),
    "open quote": (b'a,b,y\n1,2,"N\n1,2,V\n1,2,V\n', "row 0, column y: not one line of text; is a quote left open?"),
    "open quote in the header": (b'a,"b,y\n1,2,N\n', "the first line is not comma-separated values"),
    "twice": (b"a,b,a,y\n1,2,3,N\n1,2,3,N\n", "column a is there more than once"),
    "no name": (b"a,b,,y\n1,2,3,N\n1,2,3,N\n", "a column has no name"),
    "an index that jumps": (b",a,b,y\n0,1,2,N\n2,1,2,N\n", "a column has no name and does not count the rows"),
    "blank": (b"\n \n", "has no rows"),
}


@pytest.mark.parametrize("case", BAD_CSV)
def test_what_is_no_csv_is_refused(case: str, tmp_path: Path) -> None:
    content, said = BAD_CSV[case]
    (tmp_path / "a.csv").write_bytes(content)
    assert said in refused(f"csv:{tmp_path / 'a.csv'}")


def test_text_of_parquet_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    text = pa.StringArray.from_buffers(2, pa.py_buffer(np.array([0, 1, 2], np.int32)), pa.py_buffer(b"a\xff"))
    pq.write_table(pa.table({"0": [0.5, 1.0], "1": [1.0, 0.5], "patient": text}), tmp_path / "a.parquet")
    assert "Invalid UTF8" in refused(f"parquet:{tmp_path / 'a.parquet'}")


def test_names_of_several_lines_are_refused_in_one(tmp_path: Path) -> None:
    frame = table(beats_of(4), y=[0, 1, 0, 1]).rename({"5": "x\ny"})
    assert "column name 'x\\ny' is not one line of text" in refused(write(frame, tmp_path / "a.parquet"))


def test_what_was_done_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    name = write(table(beats_of(4), y=[0, 1, 0, 1]), tmp_path / "a.csv")
    prints = [read(name).fingerprint, read(f"{name}@125").fingerprint, read(f"{name}@250").fingerprint]
    assert len(set(prints)) == 3 and read(name).fingerprint == prints[0]


def test_random_split_says_whether_patients_are_on_both_sides(tmp_path: Path) -> None:
    signal = beats_of(20)
    unknown = write(table(signal, y=[0, 1] * 10), tmp_path / "a.csv")
    known = write(table(signal, y=[0, 1] * 10, patient=range(20)), tmp_path / "b.csv")
    assert parts(unknown, None, tmp_path).badge() == "unknown"
    assert parts(known, None, tmp_path).badge() == "beat-random"
    split = load_split(unknown, "beat-random", tmp_path)
    assert len(split.train) + len(split.validation) + len(split.load_test()) == 20
    assert split.load_test().counts() == {"0": 2, "1": 2}


def test_patients_are_held_apart(tmp_path: Path) -> None:
    name = write(
        table(beats_of(40), y=[0, 1] * 20, patient=[f"p{number // 4}" for number in range(40)]), tmp_path / "a.csv"
    )
    found = parts(name, "patient", tmp_path)
    train, test = found.load_train().group, found.load_test().group
    assert train is not None and test is not None
    assert not set(train.tolist()) & set(test.tolist()) and len(train) + len(test) == 40
    assert found.badge() == "patient-disjoint"


@pytest.mark.parametrize(
    ("others", "protocol", "said"),
    [
        ({}, "patient", "does not name its patients"),
        ({"patient": ["a"] * 12}, "patient", "two patients or more"),
        ({"patient": [*"abc", None] * 3}, "patient", "does not name its patients"),
        ({}, "ds1-ds2", "has no column record"),
        ({"record": [100] * 12}, "ds1-ds2", "lacks records 101 106 108 109 112 of protocol ds1-ds2"),
        ({}, "folds", "has no column fold"),
        ({"fold": [1, 10] * 6}, "folds", "has no beats for a part"),
    ],
)
def test_a_protocol_needs_its_column(others: dict[str, list[Any]], protocol: str, said: str, tmp_path: Path) -> None:
    found = parts(write(table(beats_of(), y=[0, 1] * 6, **others), tmp_path / "a.csv"), protocol, tmp_path)
    with pytest.raises(ValueError, match=said):
        for load_part in filter(None, (found.load_train, found.load_validation, found.load_test)):
            load_part()


def test_a_single_beat_cannot_be_split(tmp_path: Path) -> None:
    found = parts(write(table(beats_of(1)), tmp_path / "a.csv"), None, tmp_path)
    with pytest.raises(ValueError, match="no class of two beats or more"):
        found.load_train()


def test_official_folds(tmp_path: Path) -> None:
    found = parts(write(table(beats_of(), y=[0, 1] * 6, fold=[1, 9, 10, 3] * 3), tmp_path / "a.csv"), "folds", tmp_path)
    assert found.load_validation is not None
    assert [len(load_part()) for load_part in (found.load_train, found.load_validation, found.load_test)] == [6, 3, 3]


def test_de_chazals_records(tmp_path: Path) -> None:
    records = [*DS1, *DS2] * 5
    frame = table(beats_of(1, 9).repeat(220, 0), y=[*"NSVFQ"] * 44, record=sorted(records))
    found = parts(write(frame, tmp_path / "a.parquet"), "ds1-ds2", tmp_path)
    train, test = found.load_train(), found.load_test()
    assert train.counts() == test.counts() == {"N": 22, "S": 22, "V": 22, "F": 22}
    assert train.group is not None and sorted(set(train.group.tolist())) == list(DS1)


def test_the_file_is_looked_for_before_it_is_read(tmp_path: Path) -> None:
    missing = parts(f"csv:{tmp_path / 'a.csv'}@360", None, tmp_path)
    with pytest.raises(ValueError, match=r"a\.csv does not exist"):
        missing.check()
    (tmp_path / "a.csv").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match="is a Git LFS pointer"):
        missing.check()
    (tmp_path / "a.csv").write_text("nothing,that,can,be,read")
    missing.check()


def test_a_file_of_our_own_is_read_as_such(tmp_path: Path) -> None:
    path, beats = tmp_path / "a.parquet", synthetic_arrhythmia(60, 0)
    assert beats.group is not None
    with Writer(path) as writer:
        writer.append(Recorded(beats, pa.table({"patient": [str(patient) for patient in beats.group.tolist()]})))
    found, expected = read_own("parquet", path), read_recorded(path)
    assert torch.equal(found.beats.signal, beats.signal) and found.origin.equals(expected.origin)
    assert found.beats.fingerprint == expected.beats.fingerprint and found.beats.intervals is not None
    assert "leave out @" in refused(f"parquet:{path}@360")
    with pytest.raises(ValueError, match="has no column record"):
        read_own("parquet", path, ["100"])


def test_the_published_file(heart_data_dir: Path) -> None:
    path = heart_data_dir / "heart_test.parq"
    found, expected = read(f"parquet:{path}"), read_course(path, CLASSES["ptb"])
    assert torch.equal(found.signal, expected.signal) and torch.equal(found.labels, expected.labels)
    assert (found.classes, found.remarks, found.dropped) == (("0", "1"), (NO_RATE,), {})
