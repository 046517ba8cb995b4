"""One run on several workers, with Ray Train: on this machine, or on a cluster without a shared disk.

Beats and code travel through Ray. The first worker's states go to a keeper on the driver's node, which outlives a
worker: after one was killed, all start again from the last state, and the driver writes it where `--resume` finds it.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from experiments import cluster, loop
from experiments.files import atomic
from experiments.machine import Machine, resolve_threads
from pretrain.team import Team
from pretrain.train import Finished, Material, Voice, run

if TYPE_CHECKING:
    from pretrain.cli import Pretrain

MAX_FAILURES = 3
"""Times that a run may lose workers and start again from its last state."""
ASKED_EVERY_S = 0.5


@dataclass
class Told:
    """What the first worker has said since the driver asked last."""

    said: list[str] = field(default_factory=list)
    logged: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    progress: tuple[str, int, loop.History, int, float] | None = None
    """Title, epochs, history, steps in all, loss."""
    resumed: int | None = None
    state: bytes | None = None
    refused: str | None = None
    """The mistake in the flags that ends the run."""
    finished: Finished | None = None


class Keeper:
    """Stands between the first worker and the driver."""

    def __init__(self, state: bytes | None) -> None:
        self.last_state, self.told = state, Told()

    def tell(self, name: str, what: Any) -> None:
        if name in ("said", "logged"):
            getattr(self.told, name).append(what)
        else:
            setattr(self.told, name, what)
        if name == "state":
            self.last_state = what

    def state(self) -> bytes | None:
        return self.last_state

    def ask(self) -> Told:
        told, self.told = self.told, Told()
        return told


def _remote_keeper() -> Any:
    return ray.remote(Keeper)


def run_team(flags: Pretrain, material: Material, machine: Machine, voice: Voice) -> Finished:
    """As `pretrain.train.run`, on `flags.workers` workers.

    Raises:
        ValueError: flags or a state to resume that do not fit; workers that failed more often than is borne.
        KeyboardInterrupt: passed on; the last state is in `flags.state_file`.
    """
    threads = flags.threads or max(1, cluster.available_cores() // flags.workers)
    machine = replace(machine, threads=threads)
    before = flags.state_file.read_bytes() if flags.resume and flags.state_file.exists() else None
    with ExitStack() as stack:
        stack.enter_context(cluster.started(flags.workers + 1, flags.address))
        interrupted = stack.enter_context(loop.deferred_interrupt())
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        check_room(flags, machine)
        keeper = _remote_keeper().options(num_cpus=0, scheduling_strategy=here).remote(before)
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="pretrain-", ignore_cleanup_errors=True))
        trainer = _trainer(flags, material, machine, keeper, folder)
        failed: list[Exception] = []
        fit = threading.Thread(target=_fit, args=(trainer, failed), daemon=True)
        fit.start()
        shown = _Shown(flags, voice, stack)
        while True:
            alive = fit.is_alive()
            finished = shown.hear(ray.get(keeper.ask.remote()))
            if finished is not None:
                break
            if interrupted():
                raise KeyboardInterrupt
            if not alive:
                raise ValueError(cluster.first_line(failed[0]) if failed else "the workers ended without a result")
            fit.join(ASKED_EVERY_S)
        fit.join()
    return finished


def check_room(flags: Pretrain, machine: Machine) -> None:
    """
    Raises:
        ValueError: fewer cores, or GPUs, than workers: Ray would wait for more without a word.
    """
    for name, needed in _resources(machine).items():
        there = int(ray.cluster_resources().get(name, 0))
        if there < needed * flags.workers:
            raise ValueError(f"--workers {flags.workers}: there is {name} for {there // needed} of them alone")


def _resources(machine: Machine) -> dict[str, int]:
    """Of one worker."""
    return {"CPU": 1} if machine.device == "cpu" else {"CPU": 1, "GPU": 1}


class _Shown:
    """Passes what was told on to the terminal, the tracker and the state file."""

    def __init__(self, flags: Pretrain, voice: Voice, stack: ExitStack) -> None:
        self.flags, self.voice, self.stack = flags, voice, stack
        self.listener: loop.Listener | None = None

    def hear(self, told: Told) -> Finished | None:
        if told.refused is not None:
            raise ValueError(told.refused)
        for line in told.said:
            self.voice.say(line)
        for epoch, metrics in told.logged:
            self.voice.log(epoch, metrics)
        if told.resumed is not None:
            self.voice.say(f"continuing from step {told.resumed}")
        if told.progress:
            title, num_epochs, history, total_steps, loss = told.progress
            if self.listener is None:
                self.listener = self.stack.enter_context(self.voice.progress(title, num_epochs))
            self.listener.update(history, total_steps, loss)
        if told.state:
            with atomic(self.flags.state_file) as stream:
                stream.write(told.state)
        return told.finished


def _fit(trainer: Any, failed: list[Exception]) -> None:
    try:
        trainer.fit()
    except Exception as error:  # whatever it was, the driver says it
        failed.append(error)


def _trainer(flags: Pretrain, material: Material, machine: Machine, keeper: Any, folder: str) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    on_gpu = machine.device != "cpu"
    return TorchTrainer(
        _work,
        train_loop_config={"flags": flags, "material": ray.put(material), "machine": machine, "keeper": keeper},
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if on_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=flags.workers, use_gpu=on_gpu, resources_per_worker=_resources(machine)
        ),
        run_config=RunConfig(storage_path=folder, failure_config=FailureConfig(max_failures=MAX_FAILURES)),
    )


def _work(config: Mapping[str, Any]) -> None:
    """What each worker does."""
    from ray import train

    context, flags, keeper = train.get_context(), config["flags"], config["keeper"]
    team = Team(context.get_world_rank(), context.get_world_size())
    resolve_threads(config["machine"].threads)
    state: bytes | None = ray.get(keeper.state.remote())
    with tempfile.TemporaryDirectory() as folder:
        state_file = Path(folder) / "state.partial"
        if state is not None:
            state_file.write_bytes(state)
        try:
            finished = run(
                replace(flags, resume=state is not None),
                ray.get(config["material"]),
                config["machine"],
                _told_to(keeper) if team.rank == 0 else Voice(say=_unsaid, progress=_unseen),
                state_file=state_file,
                team=team,
            )
        except ValueError as error:
            ray.get(keeper.tell.remote("refused", str(error)))
            return
    if team.rank == 0:
        finished.task.cpu()  # where it goes, there may be no GPU
        ray.get(keeper.tell.remote("finished", finished))


def _unsaid(_line: str) -> None:
    pass


class _Unseen:
    """The listener of a worker that nobody listens to."""

    def resumed(self, step: int) -> None:
        del step

    def update(self, history: loop.History, total_steps: int, loss: float) -> None:
        del history, total_steps, loss


def _unseen(_title: str, _num_epochs: int) -> AbstractContextManager[loop.Listener]:
    return nullcontext(_Unseen())


def _told_to(keeper: Any) -> Voice:
    """The first worker's voice."""

    def tell(name: str, what: Any) -> None:
        ray.get(keeper.tell.remote(name, what))

    class Telling:
        def __init__(self, title: str, num_epochs: int) -> None:
            self.title, self.num_epochs = title, num_epochs

        def resumed(self, step: int) -> None:
            tell("resumed", step)

        def update(self, history: loop.History, total_steps: int, loss: float) -> None:
            tell("progress", (self.title, self.num_epochs, history, total_steps, loss))

    return Voice(
        log=lambda epoch, metrics: tell("logged", (epoch, dict(metrics))),
        say=lambda line: tell("said", line),
        progress=lambda title, num_epochs: nullcontext(Telling(title, num_epochs)),
        saved=lambda path: tell("state", path.read_bytes()),
    )
