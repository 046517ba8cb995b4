from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import data
from data import synthetic
from data.batches import Resident
from data.beats import Beats
from models.checkpoint import load
from pretrain import sources
from pretrain.cli import Pretrain
from pretrain.train import prepare, pretrain_encoder

BOTH = "synthetic-ptb,synthetic-arrhythmia:train"


@pytest.mark.parametrize(
    "text",
    [
        *sources.SOURCES,
        "csv:beats.csv",
        "parquet:some/beats.parq",
        "csv:strange:train",
        "arrhythmia:train",
        "mitdb:train",
        "kaggle-arrhythmia:train",
        "ptb,ptbxl,csv:beats.csv",
        BOTH,
    ],
)
def test_a_source_is_known(text: str) -> None:
    sources.check(text)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("arrhythmia", "'arrhythmia'"),
        ("mnist", "'mnist'"),
        ("", "''"),
        ("ptb,", "''"),
        ("ptb,arrhythmia", "'arrhythmia'"),
        ("ptb, ptbxl", "' ptbxl'"),
        ("arrhythmia:test", "'arrhythmia:test'"),
        ("ptb:train", "'ptb:train'"),
        ("csv:", "'csv:'"),
        (":train", "':train'"),
    ],
)
def test_what_is_no_source_is_refused_with_the_choices(text: str, wrong: str) -> None:
    with pytest.raises(ValueError, match="unknown data set to pretrain on") as error:
        sources.check(text)
    said = str(error.value)
    assert f"{wrong};" in said and "\n" not in said
    targets = [f"{name}:train" for name in data.DATASETS if name not in sources.SOURCES]
    assert all(name in said for name in (*sources.SOURCES, *targets, "csv:FILE", "parquet:FILE"))


@pytest.mark.parametrize(
    ("text", "name", "target"),
    [
        ("ptb", "ptb", "arrhythmia"),
        ("ptb,arrhythmia:train", "ptb+arrhythmia", "arrhythmia"),
        (BOTH, "synthetic-ptb+synthetic-arrhythmia", "synthetic-arrhythmia"),
        ("csv:here/synthetic-like.csv", "synthetic-like", "arrhythmia"),
        ("ptb,parquet:a/b.parq", "ptb+b", "arrhythmia"),
    ],
)
def test_names_of_files_and_the_target_of_the_probe(text: str, name: str, target: str) -> None:
    assert sources.short_name(text) == name
    assert sources.probed_on(text) == target


def flags(**changed: object) -> Pretrain:
    plain = {"task": "masked", "data": BOTH, "device": "cpu", "precision": "fp32", "threads": 1, "pictures": False}
    return Pretrain(**plain | {"tracking": "none"} | changed)  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module", autouse=True)
def few_synthetic_beats() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(synthetic.SIZES, "ptb", {"train": 400, "test": 100})
        patch.setitem(synthetic.SIZES, "arrhythmia", {"train": 3000, "test": 500})
        yield


def contents(beats: Beats) -> set[bytes]:
    return {row.tobytes() for row in beats.signal.numpy()}


@pytest.fixture(scope="module")
def joined(few_synthetic_beats: None) -> Beats:  # noqa: ARG001
    return sources.load(flags())


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("protocol", ["beat-random", "patient"])
def test_of_the_target_only_training_beats_are_taken(protocol: str, seed: int) -> None:
    joined = sources.load(flags(protocol=protocol, seed=seed))
    split = data.load_split("synthetic-arrhythmia", protocol, Path("nowhere"), seed)
    source = data.load("synthetic-ptb", "train", Path("nowhere"))
    assert len(joined) == len(source) + len(split.train)
    assert torch.equal(joined.signal[: len(source)], source.signal)
    assert contents(joined) == contents(source) | contents(split.train)
    held_out = contents(split.validation) | contents(split.load_test())
    assert len(held_out) > 600 and not held_out & contents(joined)


def test_the_probe_sees_validation_beats_and_never_test_beats(joined: Beats) -> None:
    probe = prepare(flags(), "cpu").probe
    split = data.load_split("synthetic-arrhythmia", "beat-random", Path("nowhere"), 0)
    assert contents(probe.beats) == contents(split.validation)
    assert not contents(probe.beats) & (contents(joined) | contents(split.load_test()))


def test_several_sources_are_unlabelled_and_keep_patients_apart(joined: Beats) -> None:
    source = data.load("synthetic-ptb", "train", Path("nowhere"))
    assert joined.target is None and joined.classes == ()
    assert joined.group is not None and source.group is not None
    first, second = joined.group[: len(source)], joined.group[len(source) :]
    assert torch.equal(first, source.group)
    assert not set(first.tolist()) & set(second.tolist())


def test_the_target_alone_is_without_its_labels() -> None:
    beats = sources.load(flags(data="synthetic-arrhythmia:train"))
    assert beats.target is None and "unlabelled training beats of beat-random" in beats.source


def small(beats: Beats) -> Resident:
    return Resident(replace(beats.select(torch.arange(0, len(beats), len(beats) // 96)), source=beats.source), "cpu")


def test_the_checkpoint_says_that_unlabelled_beats_of_the_target_were_seen(
    joined: Beats, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "open_feed", lambda _flags, _device: small(joined))
    out = tmp_path / "a.pt"
    outcome = pretrain_encoder(flags(epochs=1, batch_size=48, arch="resnet1d@width=4,kernel=3", out=out))
    for source in (outcome.source, load(out).source):
        assert source.count(" + ") == 1 and source.endswith("(unlabelled training beats of beat-random)")
    assert load(out).options["data"] == BOTH
    assert outcome.probe.linear is not None and "validation part" in outcome.probed_on


@pytest.mark.parametrize("task", ["supervised", "supcon", "multitask"])
def test_a_task_of_labels_is_refused(task: str, joined: Beats, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "open_feed", lambda _flags, _device: small(joined))
    with pytest.raises(ValueError, match=f"--task {task} learns from labels") as error:
        prepare(flags(task=task), "cpu")
    assert "\n" not in str(error.value)
    assert "choose from masked, spectrogram, contrastive, vicreg, byol, jepa" in str(error.value)
