"""The only caller of `ray.init`: one machine today, the same code on a cluster."""

import contextlib
import gc
import logging
import os
import secrets
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from experiments import tables
from experiments.cli import ROOT

Item = TypeVar("Item")

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "PYTHONWARNINGS": "ignore::FutureWarning,ignore::DeprecationWarning",
}
NOT_SHIPPED = [
    *(".git", ".venv", ".ci", ".hypothesis", ".pytest_cache", ".ruff_cache", "__pycache__"),
    *("tests", "checkpoints", "data/mitdb", "experiments/runs", "experiments/mlruns", "experiments/mlflow.db*"),
]
"""Code is shipped; what changes while a study runs is not, or the package would not be the one that was hashed."""


GPU_WORKERS, MAX_WORKERS = 4, 16
"""Side by side at most, where the user has not said it: each holds torch and a copy of the beats (about 1 GB)."""

ANSWERS_WITHIN_S = 10.0
"""How long a cluster may take to answer at its address."""


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_workers(device: str) -> int:
    """One-thread workers, where the user has not said it."""
    return min(available_cores(), GPU_WORKERS if device != "cpu" else MAX_WORKERS)


@contextlib.contextmanager
def started(num_workers: int, address: str | None = None) -> Iterator[None]:
    """Ray with `num_workers` one-thread workers on this machine, or the cluster at `address`; both run this
    checkout's code.

    Raises:
        ValueError: no cluster answers at `address`.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if address is not None:
        reach(address)
    else:
        # Without one, Ray writes a token into the home folder, which may be read-only.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray

    here = {"num_cpus": num_workers, "include_dashboard": False} if address is None else {"address": address}
    try:
        ray.init(
            **here,  # pyright: ignore[reportArgumentType]
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"working_dir": str(ROOT), "excludes": NOT_SHIPPED},
        )
    except (ConnectionError, RuntimeError) as error:
        raise ValueError(f"--address {address}: {error}") from None
    try:
        yield
    finally:
        gc.collect()  # a reference that is dropped after the shutdown ends the process, whatever its exit code
        ray.shutdown()


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Of a started Ray: how many run side by side, and what each may take."""

    number: int
    resources: dict[str, float]
    """In Ray's terms."""
    bytes_each: int

    @classmethod
    def of(cls, number: int | None, address: str | None, device: str) -> "Workers":
        """
        Args:
            number: where the user has said it; else as many as this machine, or the cluster, has cores.
        """
        import ray

        total = ray.cluster_resources()
        cores = max(1, int(total.get("CPU", 1)))
        resources = {"cpu": 1.0}
        if device != "cpu" and address is not None:
            resources["gpu"] = 1 / GPU_WORKERS
        usual = cores
        if address is None:
            usual = default_workers(device)
        elif device != "cpu":
            usual = max(1, int(total.get("GPU", 0) * GPU_WORKERS))
        return cls(number=number or usual, resources=resources, bytes_each=int(total.get("memory", 2**33) / cores))


def reach(address: str) -> None:
    """Ask in seconds what Ray asks for minutes.

    Raises:
        ValueError: nobody listens at `address`.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdecimal():
        try:
            socket.create_connection((host, int(port)), timeout=ANSWERS_WITHIN_S).close()
        except (OSError, OverflowError) as error:
            raise ValueError(f"--address {address}: no cluster answers there ({error})") from None


def first_line(error: Exception) -> str:
    """What went wrong in the worker, without Ray's account of where."""
    from ray.exceptions import RayTaskError

    of_workers = getattr(error, "worker_failures", {})
    error = next(iter(of_workers.values()), error)
    cause = error.cause if isinstance(error, RayTaskError) else error
    return str(cause).strip().partition("\n")[0]


def finished(
    started: Iterator[tuple[Item, Any]], ahead: int, between: Callable[[], None], name: Callable[[Item], str]
) -> Iterator[tuple[Item, Any]]:
    """What remote runs return, as they end; one that failed is said and left out.

    Args:
        started: starts a run each time that it is asked for one: what it is, and its reference.
        ahead: runs that may be started and unfinished at once.
        between: called again and again while nothing has finished; raises to stop.
        name: what messages call a run.
    """
    import ray
    from ray.exceptions import RayError

    pending: dict[Any, Item] = {}
    while True:
        pending |= {reference: item for item, reference in islice(started, ahead - len(pending))}
        if not pending:
            return
        ready, _ = ray.wait(list(pending), timeout=0.5)
        for reference in ready:
            item = pending.pop(reference)
            try:
                outcome = ray.get(reference)
            except RayError as error:
                tables.say(f"{name(item)} failed and is left out: {first_line(error)}")
                continue
            yield item, outcome
        between()
