import shutil
import struct
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from matplotlib.lines import Line2D

from data.known import FILES
from experiments import cli
from experiments.tracking import Run
from pretrain import pictures
from pretrain.cli import Pretrain
from pretrain.masked import patches
from pretrain.task import Batch
from pretrain.train import Finished, Voice, pretrain_encoder, run

SMALL = {"resnet1d": "resnet1d@width=4,kernel=3", "transformer1d": "transformer1d@dim=16,depth=1"}
DRAWN = {
    ("masked", "transformer1d"): "reconstructions",
    ("spectrogram", "resnet1d"): "reconstructions",
    ("spectrogram", "transformer1d"): "reconstructions",
    ("multitask", "transformer1d"): "reconstructions",
    ("contrastive", "resnet1d"): "embedding",
    ("jepa", "transformer1d"): "embedding",
}


def flags(data_dir: Path, task: str, arch: str, **changed: Any) -> Pretrain:
    machine = {"device": "cpu", "precision": "fp32", "threads": 1, "tracking": "none"}
    size = {"epochs": 2, "batch_size": 64, "out": data_dir / "a.pt"}
    return Pretrain(**{"task": task, "arch": SMALL[arch], "data_dir": data_dir} | machine | size | changed)


def assert_pictures(folder: Path, names: set[str]) -> None:
    """Every picture is there as a PNG of some size that shows something, and as an SVG with words."""
    assert {path.name for path in folder.iterdir()} == {f"{name}.{end}" for name in names for end in ("png", "svg")}
    for name in names:
        content = (folder / f"{name}.png").read_bytes()
        width, height = struct.unpack(">II", content[16:24])
        assert content.startswith(b"\x89PNG") and min(width, height) > 400 and len(content) > 10_000
        root = ElementTree.parse(folder / f"{name}.svg").getroot()
        assert "pretrained on" in " ".join(root.itertext())


@pytest.mark.parametrize(("task", "arch"), DRAWN)
def test_a_run_draws_its_curves_and_what_fits_the_task(
    task: str, arch: str, small_data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "RUNS", tmp_path / "runs")
    pretrain_encoder(flags(small_data_dir, task, arch, out=tmp_path / "a.pt"))
    assert_pictures(tmp_path / "runs" / "pretrain" / "a", {"curves", DRAWN[task, arch]})


def test_without_labelled_beats_there_is_no_map(
    small_data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "RUNS", tmp_path / "runs")
    shutil.copy(small_data_dir / FILES["ptb"]["train"], tmp_path)
    pretrain_encoder(flags(tmp_path, "contrastive", "resnet1d"))
    assert_pictures(tmp_path / "runs" / "pretrain" / "a", {"curves"})
    assert "no labelled beats" in (tmp_path / "runs" / "pretrain" / "a" / "curves.svg").read_text()


def test_pictures_can_be_left_out(small_data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "RUNS", tmp_path / "runs")
    pretrain_encoder(flags(small_data_dir, "masked", "resnet1d", out=tmp_path / "a.pt", pictures=False))
    assert not (tmp_path / "runs").exists()


def test_pictures_are_kept_with_the_tracked_run(
    small_data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "RUNS", tmp_path / "runs")
    kept: list[Path] = []
    monkeypatch.setattr(Run, "artifact_file", lambda _run, path: kept.append(path))
    pretrain_encoder(flags(small_data_dir, "masked", "resnet1d", out=tmp_path / "a.pt"))
    assert_pictures(tmp_path / "runs" / "pretrain" / "a", {"curves", "reconstructions"})
    assert sorted(kept) == sorted((tmp_path / "runs" / "pretrain" / "a").iterdir())


@pytest.fixture(scope="module")
def finished(small_data_dir: Path) -> dict[str, tuple[Finished, Batch]]:
    """A masked task of each architecture, and beats to reconstruct."""
    from data.batches import Resident
    from data.synthetic import synthetic_ptb
    from experiments.machine import Machine
    from pretrain.probe import Probe
    from pretrain.train import Material

    beats = synthetic_ptb(64, 0)
    material = Material(feed=Resident(beats, "cpu"), probe=Probe(beats, 0), probed_on="itself")
    batch = Batch(beats.signal[:5], beats.valid_length[:5])
    runs = {arch: run(flags(small_data_dir, "masked", arch), material, Machine(), Voice()) for arch in SMALL}
    return {arch: (done, batch) for arch, done in runs.items()}


def drawn(line: Line2D) -> tuple[list[float], list[float]]:
    """A line's points."""
    return np.asarray(line.get_xdata()).tolist(), np.asarray(line.get_ydata()).tolist()


@pytest.mark.parametrize("arch", SMALL)
def test_a_perfect_prediction_is_drawn_over_the_beat(arch: str, finished: dict[str, tuple[Finished, Batch]]) -> None:
    done, batch = finished[arch]
    task = pictures.masked_part(done.task.eval())
    assert task is not None
    signal, _, real = task.views(batch)
    made = pictures._in_samples(task, task.target(signal, real), signal, real)
    torch.testing.assert_close(made * real, patches(signal, task.patch) * real, atol=1e-4, rtol=0)


@pytest.mark.parametrize("arch", SMALL)
def test_hidden_patches_are_drawn_within_the_beat(arch: str, finished: dict[str, tuple[Finished, Batch]]) -> None:
    done, batch = finished[arch]
    task = pictures.masked_part(done.task.eval())
    assert task is not None
    figure = pictures.draw_reconstructions(task, batch, done.outcome)
    assert len(figure.axes) == pictures.NUM_SHOWN
    for beat, axes in enumerate(figure.axes[: len(batch.signal)]):
        length = int(batch.valid_length[beat])
        assert len(drawn(axes.lines[0])[0]) == length
        assert 1 < len(axes.lines) <= 1 + task.num_hidden
        assert all(max(drawn(line)[0]) <= 8.0 * (length - 1) for line in axes.lines)
    again = pictures.draw_reconstructions(task, batch, done.outcome)
    lines = [[drawn(line) for axes in picture.axes for line in axes.lines] for picture in (figure, again)]
    assert lines[0] == lines[1]


def test_curves_show_every_epoch_and_reading(finished: dict[str, tuple[Finished, Batch]]) -> None:
    outcome = finished["resnet1d"][0].outcome
    loss, probe = pictures.draw_curves(outcome).axes
    assert drawn(loss.lines[0]) == ([1, 2], outcome.losses)
    linear, untrained, neighbours, _ = probe.lines
    assert drawn(linear) == ([0, 1, 2], [reading["linear"] for reading in outcome.readings])
    assert drawn(neighbours) == ([0, 1, 2], [reading["neighbours"] for reading in outcome.readings])
    assert set(drawn(untrained)[1]) == {outcome.readings[0]["linear"]}
