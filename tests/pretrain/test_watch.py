import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import models
import pretrain
from data.known import FILES
from data.synthetic import synthetic_ptb
from models.checkpoint import attach, load
from models.encoder import Encoder, EncoderSpec
from pretrain.cli import Pretrain
from pretrain.probe import Probe, Reading
from pretrain.task import Batch, Objective, PretrainTask
from pretrain.train import Outcome, pretrain_encoder
from pretrain.views import two_views
from pretrain.watch import Watch

SMALL = {"resnet1d": "resnet1d@width=8,kernel=3", "transformer1d": "transformer1d@dim=16,depth=1"}
HEALTHY = Reading(linear=0.5, neighbours=0.5, effective_rank=8.0, spread=0.5)


@pytest.fixture(scope="module")
def unprobed(small_data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Beats to pretrain on, and none of the target."""
    folder = tmp_path_factory.mktemp("unprobed")
    shutil.copy(small_data_dir / FILES["ptb"]["train"], folder)
    return folder


def flags(data_dir: Path, out: Path, **changed: Any) -> Pretrain:
    plain: dict[str, Any] = {
        "task": "contrastive",
        "arch": SMALL["resnet1d"],
        "data_dir": data_dir,
        "out": out,
        "epochs": 5,
        "batch_size": 48,
        "device": "cpu",
        "precision": "fp32",
        "threads": 1,
        "tracking": "none",
        "pictures": False,
    }
    return Pretrain(**plain | changed)


class Alike(PretrainTask):
    """Draws the features of two views together, and nothing holds them apart."""

    remedy = "something that holds beats apart"

    def __init__(self, encoder: Encoder, objective: Objective) -> None:
        super().__init__(encoder, objective)

    def views(self, batch: Batch) -> tuple[Tensor, ...]:
        return two_views(batch, "augmented")

    def forward(self, *views: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.encoder(view) for view in views)

    def objective(self, outputs: Sequence[Tensor], views: Sequence[Tensor]) -> Tensor:
        del views
        first, second = (functional.normalize(features) for features in outputs)
        return functional.mse_loss(first, second.flip(0)) * first.shape[1]


@pytest.mark.parametrize("arch", SMALL)
def test_an_encoder_that_answers_every_beat_alike_is_named(
    arch: str, unprobed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pretrain, "task_class", lambda _name: Alike)
    outcome = pretrain_encoder(flags(unprobed, tmp_path / "a.pt", arch=SMALL[arch], epochs=60, lr=2e-2))
    assert outcome.probe.spread < 0.1 * outcome.untrained.spread
    assert any("the embedding collapses: all beats come out nearly the same" in words for words in outcome.warnings)
    assert all(words.endswith("change: something that holds beats apart") for words in outcome.warnings)
    said = capsys.readouterr()
    assert "warning: the embedding collapses" in said.out + said.err
    assert load(tmp_path / "a.pt").metrics["warnings"] == len(outcome.warnings)


NOTHING_LEARNED: dict[str, tuple[dict[str, Any], str, str]] = {
    "vicreg-without-variance": (
        {"task": "vicreg", "variance_weight": 0.0, "epochs": 20, "lr": 1e-2},
        "the loss stays at chance",
        "change: a larger --variance-weight",
    ),
    "contrastive-too-warm": (
        {"temperature": 1000.0},
        "the loss stays at chance",
        "change: a lower --temperature",
    ),
    "contrastive-too-warm-of-few-beats": (
        {"temperature": 1000.0, "batch_size": 256},
        "the loss stays at chance",
        "change: a lower --temperature",
    ),
    "supcon-too-warm": ({"task": "supcon", "temperature": 1000.0}, "the loss stays at chance", "change: "),
    "still": ({"lr": 1e-9, "task": "masked"}, "the encoder has not moved", "change: a higher --lr"),
    "still-transformer": (
        {"lr": 1e-9, "task": "masked", "arch": SMALL["transformer1d"]},
        "the encoder has not moved",
        "change: a higher --lr",
    ),
}


@pytest.mark.parametrize("case", NOTHING_LEARNED)
def test_a_run_that_learns_nothing_says_so_and_what_to_change(case: str, unprobed: Path, tmp_path: Path) -> None:
    changed, what, remedy = NOTHING_LEARNED[case]
    outcome = pretrain_encoder(flags(unprobed, tmp_path / "a.pt", **changed))
    (warning,) = [words for words in outcome.warnings if what in words]
    assert remedy in warning


@pytest.mark.parametrize("arch", SMALL)
@pytest.mark.parametrize("task", ["contrastive", "vicreg", "masked"])
def test_a_healthy_run_has_no_warning(
    task: str, arch: str, unprobed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = pretrain_encoder(flags(unprobed, tmp_path / "a.pt", task=task, arch=SMALL[arch], epochs=16, lr=1e-2))
    assert outcome.warnings == []
    said = capsys.readouterr()
    assert "warning" not in said.out + said.err
    assert load(tmp_path / "a.pt").metrics["warnings"] == 0


class Told:
    """A watch over a real encoder and beats, whose readings are told to it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, patience: int = 0, every: int = 1, epochs: int = 10) -> None:
        torch.manual_seed(0)
        spec = EncoderSpec(name="resnet1d", options={"width": 4, "kernel": 3})
        self.task = pretrain.task_class("contrastive")(models.build(spec), Objective())
        self.said: list[str] = []
        self.reading = HEALTHY
        monkeypatch.setattr(Probe, "read", lambda _probe, _features: self.reading)
        probe, size = Probe(synthetic_ptb(20, 0), 0), {"num_epochs": epochs, "every": every, "patience": patience}
        self.watch = Watch(self.task, probe, batch_size=10, say=self.said.append, **size)

    def tell(self, epoch: int, loss: float = 1.0, **read: float) -> Reading | None:
        self.reading = replace(HEALTHY, **read)
        return self.watch.after_epoch(epoch, loss)

    def move(self, by: float = 1.0) -> None:
        with torch.no_grad():
            for parameter in self.task.encoder.parameters():
                parameter.add_(by)


CHANCE = math.log(19)
SIGNS: dict[str, tuple[dict[str, float], str]] = {
    "rank": ({"effective_rank": 1.5}, "the embedding collapses: it fills 1.5 of"),
    "spread": ({"spread": 0.04}, "the embedding collapses: all beats come out nearly the same, spread 0.040"),
    "chance": ({"loss": CHANCE * 1.009}, f"the loss stays at chance, {CHANCE * 1.009:.3f} ({CHANCE:.3f})"),
}


@pytest.mark.parametrize("kind", SIGNS)
def test_each_sign_is_said_once_while_it_lasts(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told(monkeypatch)
    told.move()
    told.tell(3)
    assert told.said == [] and told.watch.collapse == {}
    bad, words = SIGNS[kind]
    told.tell(4, **bad)
    told.tell(5, **bad)
    assert list(told.watch.collapse) == [kind]
    (said,) = told.said
    assert said.startswith(f"warning: {words}") and said.endswith(f"change: {told.task.remedy}")
    told.tell(6)
    assert told.watch.collapse == {} and len(told.said) == 1


@pytest.mark.parametrize("read", [{"effective_rank": 1.7}, {"spread": 0.06}, {"loss": CHANCE * 0.989}])
def test_what_is_not_yet_a_collapse_is_not_said(read: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told(monkeypatch)
    told.move()
    told.tell(9, **read)
    assert told.said == []


def test_a_beginning_is_not_judged_by_its_loss_or_its_movement(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told(monkeypatch)
    told.tell(1, loss=CHANCE)
    assert told.said == []
    told.tell(2, loss=CHANCE)
    assert set(told.watch.collapse) == {"chance", "still"}
    told.move(0.1)
    told.tell(3)
    assert told.watch.collapse == {}


def test_running_statistics_alone_are_no_movement(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told(monkeypatch)
    told.task.encoder.train()(synthetic_ptb(20, 1).signal)
    told.tell(9)
    assert set(told.watch.collapse) == {"still"}


def test_readings_come_every_so_often_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told(monkeypatch, every=4)
    assert [epoch for epoch in range(10) if told.tell(epoch) is not None] == [3, 7, 9]
    assert list(told.watch.readings) == [3, 7, 9]


def test_patience_ends_a_run_and_keeps_the_best_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told(monkeypatch, patience=2)
    ended, weights = [], []
    for epoch, linear in enumerate((0.4, 0.6, 0.6, 0.5)):
        told.move(0.01)
        weights.append({name: tensor.clone() for name, tensor in told.task.state_dict().items()})
        told.tell(epoch, linear=linear)
        ended.append(told.watch.exhausted)
    assert ended == [False, False, False, True]
    assert told.watch.best_epoch == 1
    best = told.watch.best_weights
    assert best.keys() == weights[1].keys()
    assert all(torch.equal(best[name], tensor) for name, tensor in weights[1].items())
    told.watch.restore_best()
    assert all(torch.equal(told.task.state_dict()[name], tensor) for name, tensor in weights[1].items())


def test_what_was_wrong_at_the_best_reading_counts_where_that_encoder_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    for sick, found in ((1, {"spread"}), (2, set())):
        told = Told(monkeypatch, patience=1)
        for epoch, linear in enumerate((0.4, 0.6, 0.5)):
            told.move(0.01)
            told.tell(epoch, linear=linear, **({"spread": 0.01} if epoch == sick else {}))
        told.watch.restore_best()
        assert set(told.watch.collapse) == found


def test_without_patience_a_run_goes_on_and_keeps_its_last_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told(monkeypatch)
    for epoch in range(9):
        told.tell(epoch, linear=0.9 - epoch / 10)
        assert not told.watch.exhausted
    assert told.watch.best_weights == {}


def test_a_state_brings_everything_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told(monkeypatch, patience=2)
    for epoch, read in enumerate(({"linear": 0.6}, {"linear": 0.5, "spread": 0.0}, {"linear": 0.4, "spread": 0.0})):
        told.move(0.01)
        told.tell(epoch, **read)
    torch.save(told.watch.state(), tmp_path / "state")
    other = Told(monkeypatch, patience=2)
    other.watch.restore(torch.load(tmp_path / "state", weights_only=True))
    for name in ("readings", "collapse", "best_epoch", "exhausted"):
        assert getattr(other.watch, name) == getattr(told.watch, name)
    assert other.watch.exhausted
    assert all(torch.equal(other.watch.best_weights[name], t) for name, t in told.watch.best_weights.items())
    other.move()
    other.tell(3, spread=0.0)
    assert other.said == [], "a collapse that was said before is not said again"


def test_a_run_that_stops_early_saves_its_best_encoder(
    small_data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recalls = iter([0.5, 0.9, 0.1, 0.1, 0.1])
    after_epoch, kept = Watch.after_epoch, {}
    read = Probe.read

    def told(self: Watch, epoch: int, loss: float) -> Reading | None:
        kept[epoch] = {name: tensor.clone() for name, tensor in self.task.encoder.state_dict().items()}
        with monkeypatch.context() as patch:
            linear = next(recalls)
            patch.setattr(Probe, "read", lambda probe, features: replace(read(probe, features), linear=linear))
            return after_epoch(self, epoch, loss)

    monkeypatch.setattr(Watch, "after_epoch", told)
    out = tmp_path / "a.pt"
    outcome: Outcome = pretrain_encoder(flags(small_data_dir, out, epochs=9, patience=2, probe_every=1))
    assert len(outcome.losses) == 4
    assert [reading["epoch"] for reading in outcome.readings] == [0, 1, 2, 3, 4]
    encoder, _ = attach(load(out), str(out))
    assert all(torch.equal(tensor, kept[1][name]) for name, tensor in encoder.state_dict().items())
    assert not all(torch.equal(tensor, kept[3][name]) for name, tensor in encoder.state_dict().items())


def test_patience_needs_a_probe(unprobed: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--patience 2 looks at a probe, and there is none: .* is missing"):
        pretrain_encoder(flags(unprobed, tmp_path / "a.pt", patience=2))
