import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from experiments import loop
from experiments.files import load_tensors
from experiments.loop import History, Settings
from experiments.machine import Machine

NUM_BEATS, BATCH, EPOCHS = 24, 4, 3
STEPS = NUM_BEATS // BATCH * EPOCHS
SETTINGS = Settings(num_epochs=EPOCHS, seed=1, machine=Machine(), identity={"model": "tiny"})
OFTEN_SAVED = replace(SETTINGS, save_every_s=0.0)


class Tiny:
    """A regression with dropout and batch normalisation; `faults` says what happens in the loss of which step."""

    def __init__(self, faults: Mapping[int, Callable[[], float | None]] | None = None, stop_after: int = 99) -> None:
        torch.manual_seed(0)
        self.module: nn.Module = nn.Sequential(
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 1)
        )
        self.optimizer = torch.optim.AdamW(self.module.parameters(), lr=0.0)
        self.x = torch.randn(NUM_BEATS, 6)
        self.y = self.x.sum(1, keepdim=True)
        self.faults, self.stop_after = dict(faults or {}), stop_after
        self.progress: list[float] = []
        self.seen: list[float] = []

    def batches(self, epoch: int) -> Sequence[Tensor]:
        order = torch.randperm(NUM_BEATS, generator=torch.Generator().manual_seed(epoch))
        return order.split(BATCH)

    def before_step(self, progress: float) -> None:
        self.progress.append(progress)
        for group in self.optimizer.param_groups:
            group["lr"] = 0.05 * loop.warm_up_cosine(progress)

    def loss(self, index: Tensor) -> Tensor:
        value = functional.mse_loss(self.module(self.x[index]), self.y[index])
        fault = self.faults.get(round(self.progress[-1] * STEPS))
        factor = fault() if fault else None
        return value if factor is None else value * factor

    def after_epoch(self, epoch: int, loss: float) -> bool:
        self.seen.append(loss)
        return epoch + 1 >= self.stop_after

    def state(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.seen = list(state["seen"])


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def interrupt_twice() -> None:
    interrupt()
    interrupt()


def crash() -> None:
    raise RuntimeError("power cut")


def weights(trainee: Tiny) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in trainee.module.state_dict().items()}


def same(one: Tiny, other: Tiny) -> bool:
    return all(torch.equal(tensor, weights(other)[name]) for name, tensor in weights(one).items())


@pytest.fixture(autouse=True)
def calm() -> Iterator[None]:
    """Whatever a test does to the generators, the signals or the threads ends with it."""
    handler, threads = signal.getsignal(signal.SIGINT), torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        yield
    assert signal.getsignal(signal.SIGINT) is handler
    torch.set_num_threads(threads)


@pytest.fixture
def whole() -> tuple[Tiny, History]:
    trainee = Tiny()
    return trainee, loop.run(trainee, SETTINGS)


def test_the_same_seed_gives_the_same_losses(whole: tuple[Tiny, History]) -> None:
    again, other = Tiny(), Tiny()
    torch.manual_seed(99)
    history = loop.run(again, SETTINGS)
    assert history.losses == whole[1].losses and len(history.losses) == EPOCHS
    assert same(again, whole[0])
    assert loop.run(other, replace(SETTINGS, seed=2)).losses != history.losses
    assert not same(other, again)


def test_training_lowers_the_loss_and_is_counted() -> None:
    trainee = Tiny()
    history = loop.run(trainee, replace(SETTINGS, num_epochs=20))
    assert history.losses[-1] < history.losses[0]
    assert (history.step, history.beats) == (6 * 20, NUM_BEATS * 20)
    assert trainee.seen == history.losses
    assert trainee.progress == [step / 120 for step in range(120)]


@pytest.mark.parametrize("step", [0, 3, 5, 6, 11, STEPS - 2, STEPS - 1])
def test_interrupted_and_resumed_ends_bit_identical(step: int, whole: tuple[Tiny, History], tmp_path: Path) -> None:
    state = tmp_path / "run.partial"
    first = Tiny({step: interrupt})
    with pytest.raises(KeyboardInterrupt):
        loop.run(first, SETTINGS, state_file=state)
    assert len(first.progress) == step + 1  # the step that was under way is finished, none is begun
    assert load_tensors(state)["history"]["step"] == step + 1
    second = Tiny()
    history = loop.run(second, SETTINGS, state_file=state, resume=True)
    assert len(second.progress) == STEPS - step - 1
    assert same(second, whole[0])
    assert (history.losses, second.seen) == (whole[1].losses, whole[0].seen)
    assert (history.step, history.beats) == (STEPS, NUM_BEATS * EPOCHS)
    again = Tiny()
    assert loop.run(again, SETTINGS, state_file=state, resume=True).losses == whole[1].losses
    assert again.progress == [] and same(again, whole[0])


def test_interrupted_twice_ends_bit_identical(whole: tuple[Tiny, History], tmp_path: Path) -> None:
    state = tmp_path / "run.partial"
    for number, step in enumerate((2, 8)):
        with pytest.raises(KeyboardInterrupt):
            loop.run(Tiny({step: interrupt}), SETTINGS, state_file=state, resume=number > 0)
    last = Tiny()
    assert loop.run(last, SETTINGS, state_file=state, resume=True).losses == whole[1].losses
    assert same(last, whole[0])


@pytest.mark.parametrize("step", [4, 9])
def test_a_crash_is_resumed_from_the_last_save(step: int, whole: tuple[Tiny, History], tmp_path: Path) -> None:
    state = tmp_path / "run.partial"
    with pytest.raises(RuntimeError, match="power cut"):
        loop.run(Tiny({step: crash}), OFTEN_SAVED, state_file=state)
    second = Tiny()
    history = loop.run(second, SETTINGS, state_file=state, resume=True)
    assert len(second.progress) == STEPS - step
    assert history.losses == whole[1].losses
    assert same(second, whole[0])


def test_a_second_interrupt_does_not_wait(tmp_path: Path) -> None:
    trainee = Tiny({3: interrupt_twice})
    with pytest.raises(KeyboardInterrupt):
        loop.run(trainee, SETTINGS, state_file=tmp_path / "run.partial")
    assert len(trainee.progress) == 4
    assert not (tmp_path / "run.partial").exists()


def test_an_interrupt_without_a_state_file_is_passed_on() -> None:
    trainee = Tiny({3: interrupt})
    with pytest.raises(KeyboardInterrupt):
        loop.run(trainee, SETTINGS)
    assert len(trainee.progress) == 4


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("seed", {"seed": 2}),
        ("epochs", {"num_epochs": 4}),
        ("clip_norm", {"clip_norm": 2.0}),
        ("model", {"identity": {"model": "other"}}),
        ("precision", {"machine": Machine(precision="bf16")}),
        ("threads", {"machine": Machine(threads=2)}),
    ],
)
def test_resuming_with_other_settings_is_refused_by_name(name: str, change: dict[str, Any], tmp_path: Path) -> None:
    state = tmp_path / "run.partial"
    with pytest.raises(KeyboardInterrupt):
        loop.run(Tiny({3: interrupt}), SETTINGS, state_file=state)
    trainee = Tiny()
    with pytest.raises(ValueError, match=f"other settings: {name} was"):
        loop.run(trainee, replace(SETTINGS, **change), state_file=state, resume=True)
    assert trainee.progress == []
    assert state.exists()


def test_with_nothing_to_resume_a_run_starts_from_its_first_step(tmp_path: Path) -> None:
    alone, resumed = loop.run(Tiny(), SETTINGS), loop.run(Tiny(), SETTINGS, state_file=tmp_path / "no", resume=True)
    assert resumed.losses == alone.losses


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "run.partial"
    with pytest.raises(KeyboardInterrupt):
        loop.run(Tiny({3: interrupt}), SETTINGS, state_file=state)
    state.write_bytes(state.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"run\.partial does not end in a SHA-256"):
        loop.run(Tiny(), SETTINGS, state_file=state, resume=True)


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_and_is_never_saved(factor: float, tmp_path: Path) -> None:
    state = tmp_path / "run.partial"
    trainee = Tiny({7: lambda: factor})
    with pytest.raises(ValueError, match=f"the loss became {factor} near step 8"):
        loop.run(trainee, OFTEN_SAVED, state_file=state)
    assert len(trainee.progress) == 8
    saved = load_tensors(state)
    assert saved["history"]["step"] == 7
    assert all(tensor.isfinite().all() for tensor in saved["module"].values())


def test_an_early_stop_ends_the_run(tmp_path: Path) -> None:
    trainee = Tiny(stop_after=2)
    history = loop.run(trainee, OFTEN_SAVED, state_file=tmp_path / "run.partial")
    assert history.stopped
    assert (history.step, len(history.losses)) == (12, 2)


def test_a_run_that_stopped_early_while_interrupted_does_not_go_on(tmp_path: Path) -> None:
    state = tmp_path / "run.partial"
    with pytest.raises(KeyboardInterrupt):
        loop.run(Tiny({11: interrupt}, stop_after=2), SETTINGS, state_file=state)
    trainee = Tiny(stop_after=2)
    history = loop.run(trainee, OFTEN_SAVED, state_file=state, resume=True)
    assert (history.step, trainee.progress, len(trainee.seen)) == (12, [], 2)


class Ear:
    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []

    def resumed(self, step: int) -> None:
        self.heard.append(("resumed", step))

    def update(self, history: History, total_steps: int, loss: float) -> None:
        self.heard.append((history.step, total_steps, loss))


def test_a_listener_hears_of_epochs_and_of_resuming(tmp_path: Path) -> None:
    state, first, second = tmp_path / "run.partial", Ear(), Ear()
    with pytest.raises(KeyboardInterrupt):
        loop.run(Tiny({7: interrupt}), SETTINGS, state_file=state, listener=first)
    loop.run(Tiny(), SETTINGS, state_file=state, resume=True, listener=second)
    assert [heard[0] for heard in first.heard if heard[0] in (6, 12, 18, "resumed")] == [6]
    assert second.heard[0] == ("resumed", 8)
    assert {12, 18} <= {heard[0] for heard in second.heard}
    assert all(isinstance(heard[-1], float) and heard[1] == STEPS for heard in first.heard)


def test_gradients_are_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []
    trainee = Tiny()
    step = trainee.optimizer.step

    def measured() -> None:
        grads = [p.grad for group in trainee.optimizer.param_groups for p in group["params"]]
        norms.append(torch.cat([grad.flatten() for grad in grads]).norm().item())
        step()

    monkeypatch.setattr(trainee.optimizer, "step", measured)
    loop.run(trainee, replace(SETTINGS, clip_norm=0.01))
    assert norms == pytest.approx([0.01] * STEPS, rel=1e-3)


def test_the_learning_rate_warms_up_and_falls_as_a_cosine() -> None:
    points = {0.0: 0.0, 0.025: 0.5, 0.05: 1.0, 0.2875: 0.853553, 0.525: 0.5, 0.7625: 0.146447, 1.0: 0.0}
    assert {p: loop.warm_up_cosine(p) for p in points} == pytest.approx(points, abs=1e-6)


def test_seeds_differ_by_run_purpose_and_number() -> None:
    drawn = [loop.mix(seed, purpose, n) for seed in range(4) for purpose in ("step", "epoch") for n in range(25)]
    assert len(set(drawn)) == 200
    assert all(0 <= seed < 2**63 for seed in drawn)
    assert loop.mix(3, "step", 5) == loop.mix(3, "step", 5)
