"""MLflow, behind one small interface: the only module that imports it, and the only writer to its store.

`Tracker` and `Run` as they stand do nothing, so that a caller never asks whether tracking is on; `Tracker.open` gives
the ones that write. Only the driver opens a tracker: processes that create one database together break it.
"""
# ruff: noqa: ARG002  (what keeps nothing uses no argument)

import fcntl
import math
import os
import re
import sqlite3
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Set before MLflow is imported: no telemetry, no chatter, and an absent server is known in seconds, not in minutes.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


KEY = "key"
"""Tag of a run of which there is one alone below its parent."""

Tensors = Mapping[str, tuple[str, tuple[int, ...]]]
"""Of a signature: name → (type as NumPy calls it, shape with −1 for the batch)."""


class Run:
    """One tracked run; this one keeps nothing."""

    id = ""
    """By which a later process goes on with it."""

    def log(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add one value to each metric's curve; NaN values are left out."""

    def child(
        self,
        name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str] | None = None,
        key: str | None = None,
    ) -> AbstractContextManager["Run"]:
        """Start a run shown below this one, such as a trial of a search.

        Args:
            key: of which there is one run, however often it is started: a second one keeps nothing.
        """
        return _nothing()

    def artifact_json(self, name: str, content: Any) -> None:
        """Keep `content`, as JSON, in the run's file `name`."""

    def artifact_file(self, path: Path) -> None:
        """Keep a copy of a file, such as a picture."""

    def register(self, name: str, path: Path, inputs: Tensors, outputs: Tensors) -> str:
        """Keep an ONNX file as a model with a signature, registered under `name`.

        Returns:
            The version's number; empty where nothing is kept.

        Raises:
            ValueError: it cannot be kept: who asks for a model in the registry wants it there.
        """
        return ""


class Tracker:
    """Where runs are tracked; this one keeps nothing."""

    @staticmethod
    def open(target: str, experiment: str) -> "Tracker":
        """Open a store, and make it first where it is a file that does not exist.

        Args:
            target: "none", the path of an SQLite file, or the http(s) address of a tracking server.
            experiment: the name under which MLflow groups the runs.

        Raises:
            ValueError: the target cannot be reached or written, or the experiment was deleted in it.
        """
        return Tracker() if target == "none" else _MlflowTracker(target, experiment)

    def run(
        self,
        name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str] | None = None,
        parent: Run | None = None,
        continued: str = "",
    ) -> AbstractContextManager[Run]:
        """Start a run; leaving the block ends it: FINISHED, FAILED after an error, KILLED after Ctrl-C.

        Args:
            continued: the `id` of a run to go on with; if it is not there, a new one is started.
        """
        return _nothing()


@contextmanager
def _nothing() -> Iterator[Run]:
    yield Run()


class _MlflowTracker(Tracker):
    def __init__(self, target: str, experiment: str) -> None:
        self.target = target
        self.stopped = False
        with _in_turn(target):
            self.client = _client(target)
            try:
                self.experiment_id = self._experiment_id(experiment)
            except _errors() as error:
                raise ValueError(f"tracking {target}: {_first_line(error)}") from None

    @contextmanager
    def run(
        self,
        name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str] | None = None,
        parent: Run | None = None,
        continued: str = "",
    ) -> Iterator[Run]:
        run_id = (continued and self._reopened(continued)) or self._created(name, params, tags, parent)
        if run_id is None:
            yield Run()
            return
        run = _MlflowRun(self, run_id)
        status = "FAILED"
        try:
            yield run
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            self.send(self.client.set_terminated, run.id, status)

    def _created(
        self, name: str, params: Mapping[str, Any], tags: Mapping[str, str] | None, parent: Run | None
    ) -> str | None:
        from mlflow.entities import Param

        all_tags = {**(tags or {}), **({"mlflow.parentRunId": parent.id} if isinstance(parent, _MlflowRun) else {})}
        created = self.send(self.client.create_run, self.experiment_id, tags=all_tags, run_name=name)
        if created is None:
            return None
        run_id = created.info.run_id
        self.send(self.client.log_batch, run_id, params=[Param(key, str(value)) for key, value in params.items()])
        return run_id

    def _reopened(self, run_id: str) -> str | None:
        try:
            self.client.update_run(run_id, status="RUNNING")
        except _errors():
            return None
        return run_id

    def keyed(self, run_id: str) -> dict[str, str | None]:
        """Of the runs below a run, key → None for one that has ended, else its id: its writer died."""
        keyed: dict[str, str | None] = {}
        token = None
        while True:
            found = self.send(
                self.client.search_runs,
                [self.experiment_id],
                f"tags.`mlflow.parentRunId` = '{run_id}'",
                page_token=token,
            )
            for run in found or ():
                if key := run.data.tags.get(KEY):
                    keyed[key] = None if run.info.status == "FINISHED" else run.info.run_id
            token = found.token if found else None
            if not token:
                return keyed

    def send(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call MLflow; after a failure warn once and send nothing more: a training is worth more than its log."""
        if self.stopped:
            return None
        try:
            return call(*args, **kwargs)
        except _errors() as error:
            self.stopped = True
            print(f"warning: tracking {self.target} stopped: {_first_line(error)}", file=sys.stderr)

    def _experiment_id(self, name: str) -> str:
        experiment = self.client.get_experiment_by_name(name)
        if experiment is None:
            # A server knows where it keeps artifacts; for a file they go beside it.
            folder = None if _is_address(self.target) else Path(self.target).resolve().parent / "mlruns"
            return self.client.create_experiment(name, artifact_location=folder and folder.as_uri())
        if experiment.lifecycle_stage == "deleted":
            raise ValueError(f"tracking {self.target}: experiment {name!r} was deleted there; restore or rename it")
        return experiment.experiment_id


class _MlflowRun(Run):
    def __init__(self, tracker: _MlflowTracker, run_id: str) -> None:
        self.tracker = tracker
        self.id = run_id
        self.keyed: dict[str, str | None] | None = None

    def log(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        batch = [Metric(k, float(v), now_ms, step or 0) for k, v in metrics.items() if not math.isnan(v)]
        if batch:
            self.tracker.send(self.tracker.client.log_batch, self.id, metrics=batch)

    def child(
        self, name: str, params: Mapping[str, Any], tags: Mapping[str, str] | None = None, key: str | None = None
    ) -> AbstractContextManager[Run]:
        if key is None:
            return self.tracker.run(name, params, tags, parent=self)
        self.keyed = self.tracker.keyed(self.id) if self.keyed is None else self.keyed
        unfinished = self.keyed.get(key, "")
        if unfinished is None:
            return _nothing()
        self.keyed[key] = None
        return self.tracker.run(name, params, {**(tags or {}), KEY: key}, self, unfinished)

    def artifact_json(self, name: str, content: Any) -> None:
        self.tracker.send(self.tracker.client.log_dict, self.id, content, name)

    def artifact_file(self, path: Path) -> None:
        self.tracker.send(self.tracker.client.log_artifact, self.id, str(path))

    def register(self, name: str, path: Path, inputs: Tensors, outputs: Tensors) -> str:
        client = self.tracker.client
        try:
            plain = re.sub(r"[^\w-]", "-", name)  # MLflow takes fewer letters here than in its registry
            model = client.create_logged_model(self.tracker.experiment_id, plain, self.id)
            with tempfile.TemporaryDirectory() as folder:
                _save_onnx(Path(folder) / "model", path, inputs, outputs, model.model_id, self.id)
                client.log_model_artifacts(model.model_id, str(Path(folder) / "model"))
            client.finalize_logged_model(model.model_id, "READY")
            _create_registered(client, name)
            # A server knows its own models by name; a client on a file would look for them in the default store.
            source = f"models:/{model.model_id}" if _is_address(self.tracker.target) else model.artifact_location
            return str(client.create_model_version(name, source, self.id, model_id=model.model_id).version)
        except _errors() as error:
            raise ValueError(f"registry {self.tracker.target}: {_first_line(error)}") from None


def _create_registered(client: "MlflowClient", name: str) -> None:
    """Unless it is there."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _save_onnx(folder: Path, path: Path, inputs: Tensors, outputs: Tensors, model_id: str, run_id: str) -> None:
    """Write MLflow's form of a model, with its signature, into `folder`."""
    import numpy as np
    import onnx

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's own type hints, when its parts are first imported
        from mlflow import onnx as flavour
        from mlflow.models import Model, ModelSignature
        from mlflow.types import Schema, TensorSpec

        given, answered = (
            Schema([TensorSpec(np.dtype(dtype), shape, name) for name, (dtype, shape) in tensors.items()])
            for tensors in (inputs, outputs)
        )
        flavour.save_model(
            onnx.load(path),
            str(folder),
            mlflow_model=Model(model_id=model_id, run_id=run_id),
            signature=ModelSignature(given, answered),
            pip_requirements=[f"{package}=={version(package)}" for package in ("onnx", "onnxruntime")],
            onnx_execution_providers=["CPUExecutionProvider"],  # where it was checked
            save_as_external_data=False,
        )


@contextmanager
def _in_turn(target: str) -> Iterator[None]:
    """Processes that create one database at the same time break it.

    Raises:
        ValueError: its folder cannot be made or read.
    """
    if "://" in target:
        yield
        return
    folder = Path(target).resolve().parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise ValueError(f"tracking {target}: {error}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _client(target: str) -> "MlflowClient":
    if "://" in target and not _is_address(target):
        raise ValueError(f"tracking {target}: expected an SQLite file, an http(s) address or none")
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    return MlflowClient(target if _is_address(target) else f"sqlite:///{_writable_database(Path(target).resolve())}")


def _writable_database(path: Path) -> Path:
    """MLflow tries an unusable file for more than a minute; SQLite itself tells at once."""
    try:
        with closing(sqlite3.connect(path)) as database:
            database.execute("BEGIN IMMEDIATE")
    except (OSError, sqlite3.Error) as error:
        raise ValueError(f"tracking {path}: {error}") from None
    return path


def _is_address(target: str) -> bool:
    return target.startswith(("http://", "https://"))


def _errors() -> tuple[type[Exception], ...]:
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, SQLAlchemyError, OSError


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
