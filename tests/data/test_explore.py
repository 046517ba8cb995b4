import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from data import explore, pictures
from data.beats import Beats
from data.explore import Explore, heart_rates, largest_classes, mean_and_spread
from data.pictures import PICTURES
from data.synthetic import synthetic_arrhythmia

Parts = dict[str, Beats]
Run = Callable[..., dict[str, Any]]

WHOLE = synthetic_arrhythmia(260, 0)
TRAIN, TEST = WHOLE.select(torch.arange(200)), WHOLE.select(torch.arange(195, 260))
"""Five test beats are training beats too."""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Explore these parts; gives back what `--json` wrote."""

    def explored(parts: Parts, **flags: Any) -> dict[str, Any]:
        monkeypatch.setattr(explore, "load_parts", lambda name, data_dir: parts)  # noqa: ARG005
        Explore(name="drawn", out=tmp_path / "out", json=tmp_path / "out.json", **flags).run()
        return json.loads((tmp_path / "out.json").read_text())

    return explored


@pytest.fixture
def balance_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "PICTURES", {"class_balance": pictures.draw_balance})


def assert_drawn(pictures: list[str]) -> None:
    assert [Path(path).name for path in pictures] == [f"{name}.{end}" for name in PICTURES for end in ("png", "svg")]
    for path in pictures[::2]:
        assert imread(path)[..., :3].std() > 0.02
    for path in pictures[1::2]:
        root = ElementTree.parse(path).getroot()
        assert "drawn: " in "".join(root.itertext())
        assert len(list(root.iter("{http://www.w3.org/2000/svg}path"))) > 3


def test_the_figures_are_those_of_numpy(run: Run) -> None:
    summary = run({"train": TRAIN, "test": TEST})
    train, test = summary["parts"]
    assert (train["beats"], test["beats"]) == (200, 65)
    assert (train["repeated"], train["also_in"], test["also_in"]) == (0, {}, {"train": 5})
    assert TRAIN.group is not None and TRAIN.intervals is not None
    assert train["patients"] == len(set(TRAIN.group.tolist()))
    length, target = TRAIN.valid_length.numpy(), TRAIN.labels.numpy()
    for label, row in enumerate(train["classes"]):
        mine = length[target == label]
        rates = 60 / (mine[mine < 187] / 125 / 1.2)
        assert (row["class"], row["beats"]) == ("NSVFQ"[label], len(mine))
        assert row["share"] == pytest.approx(len(mine) / 200)
        assert row["length_s"] == pytest.approx(
            {"shortest": min(mine) / 125, "median": np.median(mine) / 125, "longest": max(mine) / 125}
        )
        assert row["fill_the_window"] == sum(mine == 187)
        assert list(row["heart_rate_bpm"].values()) == pytest.approx(np.percentile(rates, [10, 50, 90]))
        before_over_last = TRAIN.intervals.numpy()[target == label, 0]
        assert row["median_log_before_over_last"] == pytest.approx(np.median(before_over_last))
    assert_drawn(summary["pictures"])


@pytest.mark.usefixtures("balance_only")
def test_the_tables_print_the_figures(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    read = replace(TRAIN, dropped={"too short [s]": 1234}, remarks=("cropped to 187 samples", "[scaled]"))
    run({"train": read, "test": TEST})
    printed = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    assert "dropped from the source: too short [s] 1,234 0" in lines
    assert "repeat one of train 5" in lines
    assert "remarks cropped to 187 samples" in lines and "[scaled]" in lines
    num_normal = TRAIN.counts()["N"]
    assert any(line.startswith(f"N {num_normal} {num_normal / 200:.1%} ") for line in lines)


def test_heart_rates_leave_out_what_fills_the_window() -> None:
    some = replace(TRAIN.select(torch.arange(4)), valid_length=torch.tensor([0, 150, 187, 75]))
    assert heart_rates(some).tolist() == [60.0, 120.0]


def test_mean_and_spread_end_where_few_beats_last() -> None:
    signal, length = TRAIN.signal[:, 0].numpy().astype(np.float64), TRAIN.valid_length.numpy()
    valid = np.arange(187) < length[:, None]
    mean, low, high = mean_and_spread(TRAIN)
    enough = valid.sum(axis=0) >= 20
    assert 0 < enough.sum() < 187
    assert np.isnan([mean[~enough], low[~enough], high[~enough]]).all()
    kept = np.where(valid, signal, np.nan)[:, enough]
    np.testing.assert_allclose(mean[enough], np.nanmean(kept, axis=0), atol=1e-6)
    np.testing.assert_allclose([low[enough], high[enough]], np.nanquantile(kept, [0.1, 0.9], axis=0), atol=1e-6)


def test_beats_without_labels_are_one_class(run: Run) -> None:
    bare = replace(TRAIN, target=None, classes=(), group=None, intervals=None)
    summary = run({"train": bare, "test": TEST})
    assert [[row["class"] for row in part["classes"]] for part in summary["parts"]] == [["all"], ["all"]]
    assert summary["parts"][0]["classes"][0]["beats"] == 200
    assert (summary["parts"][0]["patients"], summary["num_classes"]) == (None, 1)
    assert_drawn(summary["pictures"])


def test_classes_of_one_beat_and_of_none_and_several_leads(run: Run) -> None:
    target = torch.zeros(40, dtype=torch.int64)
    target[7] = 1
    some = replace(TRAIN.select(torch.arange(40)), target=target, classes=("a$b$", "[b]", "<c>"))
    parts = {
        part: replace(beats, signal=beats.signal.expand(-1, 2, -1).contiguous())
        for part, beats in (("train", some), ("test", some.select(torch.arange(5))))
    }
    summary = run(parts)
    one, none = summary["parts"][0]["classes"][1:]
    assert (one["beats"], one["length_s"]["shortest"]) == (1, one["length_s"]["longest"])
    assert (none["beats"], none["length_s"], none["heart_rate_bpm"]) == (0, None, None)
    assert_drawn(summary["pictures"])
    text = Path(summary["pictures"][5]).read_text()
    assert "first of 2 leads" in text and "a$b$" in text


@pytest.mark.usefixtures("balance_only")
def test_of_many_classes_the_largest_are_shown(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    target = torch.cat([torch.arange(25), torch.arange(5, 25).repeat(8)])
    many = replace(TRAIN.select(torch.arange(185)), target=target, classes=tuple(f"c{label}" for label in range(25)))
    shown = largest_classes({"train": many})["train"]
    assert shown.classes == many.classes[5:] and list(shown.counts().values()) == [9] * 20
    assert torch.equal(shown.signal, many.signal[target >= 5])
    summary = run({"train": many, "test": many})
    assert (summary["num_classes"], summary["num_classes_shown"]) == (25, 20)
    assert summary["parts"][0]["classes"][0]["share"] == pytest.approx(9 / 185)
    assert "the 20 largest of 25" in capsys.readouterr().out
    assert "the 20 largest of 25 classes" in Path(summary["pictures"][1]).read_text()


def test_the_same_seed_draws_the_same_pictures(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("class_balance", "example_beats", "map")
    monkeypatch.setattr(pictures, "PICTURES", {name: PICTURES[name] for name in names})
    few = TRAIN.select(torch.arange(60))

    def drawn(seed: int) -> dict[str, bytes]:
        run({"train": few, "test": few}, seed=seed)
        return {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    first, again, other = drawn(0), drawn(0), drawn(1)
    assert first == again
    differ = {name for name in first if first[name] != other[name]}
    assert differ == {f"{name}.{end}" for name in ("example_beats", "map") for end in ("png", "svg")}


def test_too_few_beats_for_a_map_are_refused(run: Run) -> None:
    with pytest.raises(ValueError, match="2 beats, and a map needs 3"):
        run({"train": TRAIN.select(torch.arange(2)), "test": TEST})


def test_a_folder_that_cannot_be_made_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="--out"):
        Explore(name="nowhere", out=tmp_path / "file").run()
    with pytest.raises(ValueError, match="nowhere"):
        Explore(name="nowhere", out=tmp_path / "out").run()
