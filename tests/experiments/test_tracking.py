import json
import math
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

from experiments.tracking import ENVIRONMENT, Run, Tracker


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("tracking") / "new folder" / "mlflow.db"


@pytest.fixture(scope="module")
def tracker(database) -> Tracker:
    return Tracker.open(str(database), "tests")


@pytest.fixture
def client(database, tracker):  # noqa: ARG001  the tracker makes the database
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{database}")


def only_run(client, name: str):
    experiment = client.get_experiment_by_name("tests")
    (run,) = client.search_runs([experiment.experiment_id], f"attributes.run_name = '{name}'")
    return run


def test_params_metrics_tags_and_status(tracker, client):
    with tracker.run("complete", {"lr": 0.1, "schedule": "frozen"}, {"arm": "transfer"}) as run:
        run.log({"loss": 2.0, "recall/Q": math.nan}, step=1)
        run.log({"loss": 1.0}, step=2)
        run.log({"recall/Q": math.nan})
    found = only_run(client, "complete")
    assert found.info.status == "FINISHED"
    assert found.data.params == {"lr": "0.1", "schedule": "frozen"}
    assert found.data.metrics == {"loss": 1.0}
    assert found.data.tags["arm"] == "transfer"
    assert [(point.step, point.value) for point in client.get_metric_history(found.info.run_id, "loss")] == [
        (1, 2),
        (2, 1),
    ]


def test_a_child_names_its_parent(tracker, client):
    with tracker.run("search", {}) as search, search.child("trial", {"lr": 1}):
        pass
    assert only_run(client, "trial").data.tags["mlflow.parentRunId"] == only_run(client, "search").info.run_id


def test_artifacts_lie_beside_the_database(tracker, client, database):
    with tracker.run("artifact", {}) as run:
        run.artifact_json("confusion.json", [[1, 2], [3, 4]])
    folder = database.parent / "mlruns" / only_run(client, "artifact").info.run_id / "artifacts"
    assert json.loads((folder / "confusion.json").read_text()) == [[1, 2], [3, 4]]


def test_a_file_is_kept_as_a_copy(tracker, client, database, tmp_path):
    picture = tmp_path / "curves.png"
    picture.write_bytes(b"a picture")
    with tracker.run("picture", {}) as run:
        run.artifact_file(picture)
    picture.unlink()
    kept = database.parent / "mlruns" / only_run(client, "picture").info.run_id / "artifacts" / "curves.png"
    assert kept.read_bytes() == b"a picture"


def write_identity(path: Path) -> None:
    from onnx import TensorProto, helper

    given, answer = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in ("x", "y"))
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "identity", [given], [answer])
    path.write_bytes(helper.make_model(graph, ir_version=10).SerializeToString())


def test_a_model_is_registered_once_more_each_time_with_its_signature(tracker, client, database, tmp_path):
    write_identity(tmp_path / "identity.onnx")
    tensors = {"x": ("float32", (-1, 3))}, {"y": ("float32", (-1, 3))}
    with tracker.run("register", {}) as run:
        assert [run.register("hearts 1.0", tmp_path / "identity.onnx", *tensors) for _ in range(2)] == ["1", "2"]
        with pytest.raises(ValueError, match=r"^registry .*mlflow\.db: .*name"):
            run.register("a/b", tmp_path / "identity.onnx", *tensors)
    version = client.get_model_version("hearts 1.0", "2")
    assert version.run_id == only_run(client, "register").info.run_id
    folder = Path(unquote(version.source.removeprefix("file://")))
    assert folder.is_relative_to(database.parent / "mlruns")
    assert (folder / "model.onnx").read_bytes() == (tmp_path / "identity.onnx").read_bytes()
    from mlflow.models import Model  # warns at its first import, which is not the test's

    signature = Model.load(str(folder)).signature
    assert [(spec.name, spec.type.name, spec.shape) for spec in signature.inputs] == [("x", "float32", (-1, 3))]
    assert [spec.name for spec in signature.outputs] == ["y"]


def test_a_file_that_is_not_there_warns_and_lets_the_run_go_on(database, tracker, capsys, tmp_path):  # noqa: ARG001
    with Tracker.open(str(database), "tests").run("no picture", {}) as run:
        run.artifact_file(tmp_path / "nowhere.png")
        run.log({"loss": 1.0})
    assert capsys.readouterr().err.count("warning: tracking") == 1


@pytest.mark.parametrize(("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_an_error_passes_through_and_sets_the_status(tracker, client, error, status):
    with pytest.raises(error), tracker.run(f"ends {status}", {}):
        raise error
    assert only_run(client, f"ends {status}").info.status == status


def test_the_same_experiment_opens_again(tracker, database):  # noqa: ARG001
    with Tracker.open(str(database), "tests").run("second opening", {}) as run:
        run.log({"loss": 0.0})


def test_a_store_that_fails_later_warns_once_and_lets_the_run_go_on(database, tracker, capsys):  # noqa: ARG001
    failing = Tracker.open(str(database), "tests")
    with failing.run("failing", {}) as run:
        run.log({"not a metric name: é!": 1.0})
        run.log({"loss": 1.0})
        with run.child("never made", {}) as child:
            child.log({"loss": 1.0})
    assert capsys.readouterr().err.count("warning: tracking") == 1


def test_none_keeps_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Tracker.open("none", "tests").run("n", {"lr": 1}) as run, run.child("c", {}) as child:
        assert isinstance(child, Run)
        child.log({"loss": 1.0}, step=1)
        child.artifact_json("a.json", {})
        child.artifact_file(tmp_path / "a.png")
        assert child.register("hearts", tmp_path / "a.onnx", {}, {}) == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", ["folder", "text.db", "text.db/mlflow.db", "postgresql://host/db"])
def test_a_target_that_cannot_be_used_is_refused_in_one_line(tmp_path, monkeypatch, target):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.db").write_text("not a database" * 100)
    with pytest.raises(ValueError, match="tracking ") as error:
        Tracker.open(target, "tests")
    assert "\n" not in str(error.value)


def test_an_absent_server_is_refused_in_one_line(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ValueError, match="tracking http") as error:
        Tracker.open("http://127.0.0.1:9", "tests")
    assert "\n" not in str(error.value)


def test_a_deleted_experiment_is_refused(tracker, client, database):  # noqa: ARG001
    Tracker.open(str(database), "deleted")
    client.delete_experiment(client.get_experiment_by_name("deleted").experiment_id)
    with pytest.raises(ValueError, match="was deleted"):
        Tracker.open(str(database), "deleted")


def test_mlflow_is_imported_only_when_asked_for():
    script = "import sys, experiments.tracking as t; t.Tracker.open('none', 'x'); sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2], check=False).returncode == 0
    assert ENVIRONMENT["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_a_keyed_child_is_there_once_even_after_a_restart(tracker, client, database):
    with tracker.run("keyed", {}) as parent:
        for _ in range(2):
            with parent.child("one", {"lr": 1}, key="a") as run:
                run.log({"recall": 0.5})
        assert parent.id
    later = Tracker.open(str(database), "tests")
    with later.run("keyed again", {}, continued=parent.id) as again:
        assert again.id == parent.id
        with again.child("one", {"lr": 1}, key="a") as run:
            run.log({"recall": 0.9})
        with again.child("two", {}, key="b"):
            pass
    one = only_run(client, "one")
    assert (one.info.status, one.data.metrics) == ("FINISHED", {"recall": 0.5})
    assert only_run(client, "two").data.tags["mlflow.parentRunId"] == parent.id
    experiment = client.get_experiment_by_name("tests")
    assert client.search_runs([experiment.experiment_id], "attributes.run_name = 'keyed again'") == []
    assert only_run(client, "keyed").info.status == "FINISHED"


def test_a_child_whose_writer_died_is_finished_and_not_doubled(tracker, client):
    with tracker.run("parent of a dead one", {}) as parent:
        created = client.create_run(
            tracker.experiment_id,
            tags={"mlflow.parentRunId": parent.id, "key": "a"},
            run_name="dead",
        )
        with parent.child("dead", {"lr": 1}, key="a") as run:
            run.log({"recall": 0.5})
    found = only_run(client, "dead")
    assert found.info.run_id == created.info.run_id
    assert (found.info.status, found.data.metrics) == ("FINISHED", {"recall": 0.5})


def test_a_run_that_is_gone_is_started_anew(tracker, client):
    with tracker.run("anew", {}, continued="0123456789abcdef") as run:
        assert run.id not in ("", "0123456789abcdef")
    assert only_run(client, "anew").info.status == "FINISHED"
