"""The only caller of `ray.init`: one machine today, the same code on a cluster."""

import contextlib
import logging
import os
import secrets
from collections.abc import Iterator

from experiments.cli import ROOT

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "PYTHONWARNINGS": "ignore::FutureWarning,ignore::DeprecationWarning",
}
NOT_SHIPPED = [
    *(".git", ".venv", ".ci", ".hypothesis", ".pytest_cache", ".ruff_cache", "__pycache__"),
    *("tests", "checkpoints", "data/mitdb", "experiments/runs", "experiments/mlruns", "experiments/mlflow.db*"),
]
"""Code is shipped; what changes while a study runs is not, or the package would not be the one that was hashed."""


@contextlib.contextmanager
def started(num_workers: int) -> Iterator[None]:
    """Ray with `num_workers` one-thread workers that run this checkout's code."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    # Without one, Ray writes a token into the home folder, which may be read-only.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray

    ray.init(
        num_cpus=num_workers,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={"working_dir": str(ROOT), "excludes": NOT_SHIPPED},
    )
    try:
        yield
    finally:
        ray.shutdown()


def first_line(error: Exception) -> str:
    """What went wrong in the worker, without Ray's account of where."""
    from ray.exceptions import RayTaskError

    cause = error.cause if isinstance(error, RayTaskError) else error
    return str(cause).strip().partition("\n")[0]
