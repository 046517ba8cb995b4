"""A record read an hour at a time gives what it gives whole; annotations come back as they were written."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from data import record as module
from data.imitate import write_records
from data.physionet import AAMI, CLASS_OF, read_database
from data.record import Record, is_record, read_annotations, write_annotations
from data.segment import find_r_peaks

SIZES: dict[str, dict[str, Any]] = {
    "mitdb": {"num_records": 3, "seconds": 70},
    "ptbdb": {"num_records": 1, "seconds": 40},
    "ptbxl": {"num_records": 1, "seconds": 40},
}
STEMS = {"mitdb": "100", "ptbdb": "patient001/s0001_re", "ptbxl": "records100/00000/00001_lr"}


@pytest.fixture(scope="module")
def imitated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("imitated")
    for name, size in SIZES.items():
        write_records(name, root / name, **size)
    return root


def wrsamp(stem: Path, signal: NDArray[np.floating], rate_hz: float = 250, names: Sequence[str] = ("II",)) -> None:
    stem.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import wfdb

        number = len(names)
        wfdb.wrsamp(
            stem.name,
            fs=rate_hz,
            units=["mV"] * number,
            sig_name=list(names),
            p_signal=signal.reshape(-1, number),
            fmt=["16"] * number,
            adc_gain=[1000.0] * number,
            baseline=[0] * number,
            write_dir=str(stem.parent),
        )


def stretches_of(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STRETCH_S", seconds)


@pytest.mark.parametrize("suffix", ["", ".hea", ".dat"])
def test_a_record_is_named_with_or_without_a_suffix(suffix: str, imitated: Path) -> None:
    path = imitated / f"mitdb/100{suffix}"
    assert is_record(path)
    record = Record.open(path)
    assert (record.stem, record.lead, record.rate_hz, record.num_samples) == (
        imitated / "mitdb/100",
        "MLII",
        360,
        25200,
    )
    assert record.seconds == 70


def test_what_is_no_record_is_told(imitated: Path) -> None:
    assert is_record(Path("gone.hea")) and not is_record(imitated / "mitdb/99") and not is_record(Path("beats.parq"))


def test_the_lead_is_the_usual_one_or_the_one_asked_for(imitated: Path, tmp_path: Path) -> None:
    assert Record.open(imitated / "mitdb/102").lead == "V5"  # has no MLII: its first
    assert Record.open(imitated / "mitdb/100", wanted="V5").lead == "V5"
    assert Record.open(imitated / "ptbdb" / STEMS["ptbdb"]).lead == "ii"
    signal = np.stack([np.zeros(500), np.arange(500) / 1000], axis=1)
    wrsamp(tmp_path / "two", signal, names=("V1", "II"))
    record = Record.open(tmp_path / "two")
    assert record.lead == "II"
    np.testing.assert_allclose(record.read(100, 103), [0.1, 0.101, 0.102])


@pytest.mark.parametrize("name", STEMS)
def test_stretches_give_the_beats_of_the_whole(name: str, imitated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = Record.open(imitated / name / STEMS[name])
    peak = record.find_peaks()
    np.testing.assert_array_equal(peak, find_r_peaks(record.read(), record.rate_hz))
    rhythm = record.measure(peak)
    [whole] = record.beats(rhythm, 1000)
    stretches_of(7, monkeypatch)
    pieces = list(record.beats(rhythm, 3))
    assert len(pieces) > 5 and max(map(len, pieces)) == 3
    assert torch.equal(torch.cat([piece.signal for piece in pieces]), whole.signal)
    assert all(piece.intervals is not None and whole.intervals is not None for piece in pieces)
    assert len(whole) == len(rhythm.start) == int(rhythm.kept.sum())


@pytest.mark.parametrize("name", ["ptbdb", "ptbxl"])
def test_its_beats_are_those_of_the_database(name: str, imitated: Path) -> None:
    record = Record.open(imitated / name / STEMS[name])
    [beats] = record.beats(record.measure(record.find_peaks()), 1000)
    built = read_database(name, imitated / name).beats
    assert torch.equal(beats.signal, built.signal)
    assert beats.intervals is not None and built.intervals is not None
    assert torch.equal(beats.intervals, built.intervals)


def test_peaks_are_found_across_borders_once(imitated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = Record.open(imitated / "mitdb/100")
    whole = record.find_peaks()
    told: list[tuple[int, int]] = []
    border_s = float(whole[20] / record.rate_hz)  # runs through a beat
    stretches_of(border_s, monkeypatch)
    found = record.find_peaks(lambda done, total: told.append((done, total)))
    assert len(found) == len(whole) and np.abs(found - whole).max() <= 2  # samples at 250 Hz begin elsewhere
    assert len(told) > 2 and told[-1] == (record.num_samples, record.num_samples)


def test_a_stretch_is_what_is_read_at_once(imitated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = Record.open(imitated / "mitdb/100")
    rhythm = record.measure(record.find_peaks())
    stretches_of(5, monkeypatch)
    most, read = 0, Record.read

    def watched(self: Record, first: int = 0, last: int | None = None) -> NDArray[np.float64]:
        nonlocal most
        most = max(most, (self.num_samples if last is None else last) - first)
        return read(self, first, last)

    monkeypatch.setattr(Record, "read", watched)
    record.find_peaks()
    list(record.beats(rhythm, 100))
    assert 0 < most <= 360 * (5 + 2 * module.DETECTION_MARGIN_S)


def test_segments_are_read_as_one_record(tmp_path: Path) -> None:
    signal = np.random.default_rng(0).integers(-900, 900, 1000) / 1000
    wrsamp(tmp_path / "a", signal[:400])
    wrsamp(tmp_path / "b", signal[400:])
    (tmp_path / "all.hea").write_text("all/2 1 250 1000\na 400\nb 600\n")
    record = Record.open(tmp_path / "all")
    assert (record.lead, record.num_samples) == ("II", 1000)
    np.testing.assert_allclose(record.read(390, 410), signal[390:410], atol=1e-9)


def test_a_header_may_leave_the_length_out(tmp_path: Path) -> None:
    wrsamp(tmp_path / "a", np.zeros(700))
    header = tmp_path / "a.hea"
    header.write_text(header.read_text().replace("a 1 250 700", "a 1 250"))
    assert Record.open(tmp_path / "a").num_samples == 700


Damage = Callable[[Path], object]


def cut_off(stem: Path) -> None:
    path = stem.with_suffix(".dat")
    path.write_bytes(path.read_bytes()[:900])


def no_signal(stem: Path) -> None:
    stem.with_suffix(".hea").write_text("a 0 250 600\n")


REFUSALS: dict[str, tuple[Damage, str]] = {
    "no header": (lambda stem: stem.with_suffix(".hea").unlink(), "is no WFDB record: {stem}.hea does not exist"),
    "no samples": (lambda stem: stem.with_suffix(".dat").unlink(), "lacks its samples: {stem}.dat does not exist"),
    "nonsense": (lambda stem: stem.with_suffix(".hea").write_text("nonsense"), "{stem}: not a readable WFDB record ("),
    "empty header": (lambda stem: stem.with_suffix(".hea").write_text(""), "{stem}: not a readable WFDB record ("),
    "no signal": (no_signal, "{stem} has no signal"),
    "cut off": (cut_off, "{stem}: not a readable WFDB record ("),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_is_damaged_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    damage, said = REFUSALS[case]
    stem = tmp_path / "a"
    wrsamp(stem, np.random.default_rng(0).standard_normal(600))
    Record.open(stem).read()
    damage(stem)
    with pytest.raises(ValueError) as caught:
        Record.open(stem).find_peaks()
    assert said.format(stem=stem) in str(caught.value) and "\n" not in str(caught.value)


def test_an_empty_record_is_refused(tmp_path: Path) -> None:
    wrsamp(tmp_path / "a", np.zeros(100))
    header = tmp_path / "a.hea"
    header.write_text(header.read_text().replace("a 1 250 100", "a 1 250 0"))
    with pytest.raises(ValueError, match="is empty: a record of 0 samples"):
        Record.open(tmp_path / "a")


def test_a_missing_lead_is_refused_with_those_there_are(imitated: Path) -> None:
    with pytest.raises(ValueError, match="100 has leads MLII, V5, not V9"):
        Record.open(imitated / "mitdb/100", wanted="V9")


def test_a_sample_that_is_no_number_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signal = np.random.default_rng(0).standard_normal(5000)
    signal[3456] = np.nan
    wrsamp(tmp_path / "a", signal)
    stretches_of(4, monkeypatch)
    with pytest.raises(ValueError, match="a: sample 3456 of its signal is not a number"):
        Record.open(tmp_path / "a").find_peaks()


def test_annotations_come_back_as_they_were_written(tmp_path: Path) -> None:
    sample = np.array([5, 400, 401, 90_000, 40_000_000])  # farther apart than ten bits, and than sixteen
    names = ["N", "S", "V", "F", "Q"]
    write_annotations(tmp_path / "new" / "a.pred", sample, names, 360)
    found, symbols = read_annotations(tmp_path / "new" / "a", "pred")
    assert (found.tolist(), symbols) == (sample.tolist(), names)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.pred"]
    assert all(name in AAMI[name] or name == "S" for name in names)


def test_other_classes_are_unclassifiable_beats_with_their_name_beside(tmp_path: Path) -> None:
    write_annotations(tmp_path / "a.pred", np.array([5, 400, 700]), ["normal", "MI", "N"], 360)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import wfdb

        found: Any = wfdb.rdann(str(tmp_path / "a"), "pred")
    assert found.symbol == ["Q", "Q", "N"]
    assert [note.rstrip("\0") for note in found.aux_note] == ["normal", "MI", "N"]


def test_annotations_that_cannot_be_read_are_named(imitated: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"100\.qrs does not exist"):
        read_annotations(imitated / "mitdb/100", "qrs")
    (tmp_path / "a.atr").write_bytes(b"\1")
    with pytest.raises(ValueError, match=r"a\.atr: not readable WFDB annotations"):
        read_annotations(tmp_path / "a", "atr")


TOLERANCE_S = 0.15


def distances(wanted: NDArray[np.int64], found: NDArray[np.int64]) -> NDArray[np.float64]:
    """Of each of `wanted` from the nearest of `found`; both ascending."""
    around = np.r_[-np.inf, found, np.inf]
    place = np.searchsorted(found, wanted)
    return np.minimum(wanted - around[place], around[place + 1] - wanted)


HARD = ("106", "108", "203", "208", "221")
"""Ventricular beats of many forms, high P waves, noise."""


def test_real_beats_are_found_where_they_are_annotated(heart_data_dir: Path) -> None:
    """Measured: sensitivity .994, of ventricular beats .982, positive predictivity .998 (all 48: .998, .985, .995)."""
    hits, totals, ventricular, offsets = np.zeros(2), np.zeros(2), np.zeros(2), []
    for name in HARD:
        record = Record.open(heart_data_dir / "mitdb" / name)
        sample, symbol = read_annotations(record.stem, "atr")
        beats, of_v = sample[np.isin(symbol, list(CLASS_OF))], sample[np.isin(symbol, list(AAMI["V"]))]
        found, tolerance = record.find_peaks(), TOLERANCE_S * record.rate_hz
        away = distances(beats, found)
        hits += (away <= tolerance).sum(), (distances(found, beats) <= tolerance).sum()
        totals += len(beats), len(found)
        ventricular += (distances(of_v, found) <= tolerance).sum(), len(of_v)
        offsets.append(np.median(away) / record.rate_hz)
    sensitivity, predictivity = hits / totals
    assert sensitivity > 0.992 and predictivity > 0.995
    assert ventricular[0] / ventricular[1] > 0.975
    assert max(offsets) < 0.007
