import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

import models
from models import cli, show
from tests.samples import assert_refused

Run = Callable[..., tuple[int | str, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """`python -m models ARGS` in this process, with measurements of a moment: exit code, stdout, stderr."""
    monkeypatch.setattr(show, "SECONDS", 0.0)
    monkeypatch.setattr(show, "BATCH_SIZE", 4)
    threads = torch.get_num_threads()

    def run(*args: str | Path) -> tuple[int | str, str, str]:
        with pytest.raises(SystemExit) as stop:
            cli.main([str(arg) for arg in args])
        out, err = capsys.readouterr()
        return stop.value.code or 0, out, err

    yield run
    torch.set_num_threads(threads)


def test_list_tells_own_from_library_and_why_one_cannot_be_built(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = models.Architecture("models.nowhere:Nothing", "broken")
    monkeypatch.setattr(models, "LIBRARIES", {**models.LIBRARIES, "broken": broken})
    monkeypatch.setattr(models, "LIBRARY_MODELS", ("tsai:FCNPlus", "broken:Net"))
    code, out, err = run("list", "--json", tmp_path / "list.json")
    assert (code, err) == (0, "")
    rows = {row["name"]: row for row in json.loads((tmp_path / "list.json").read_text())}
    assert list(rows) == [*models.ENCODERS, "tsai:FCNPlus", "broken:Net"]
    assert [row["origin"] for row in rows.values()] == [*["own"] * len(models.ENCODERS), "tsai", "broken"]
    resnet = rows["resnet1d"]
    assert (resnet["family"], resnet["tokens"], resnet["dim"], len(resnet["stages"])) == ("1D CNN", 6, 128, 5)
    assert (resnet["parameters"], resnet["multiply_adds"]) == (232_416, 2_568_768)
    assert rows["tsai:FCNPlus"]["family"] == "CNN"
    assert "No module named 'models.nowhere'" in rows["broken:Net"]["reason"]
    own, _, others = out.partition("of libraries")
    assert all(f"\n{name} " in own for name in models.ENCODERS)
    assert "width=32 kernel=5" in own and "232,416" in own and "2.57 M" in own
    assert "\ntsai:FCNPlus " in others and "\nresnet1d" not in others
    assert "\nbroken:Net cannot be built here: ModuleNotFoundError: No module named" in others


def test_show_prints_stages_options_and_speed(run: Run, tmp_path: Path) -> None:
    files = ("--svg", tmp_path / "a.svg", "--json", tmp_path / "a.json")
    code, out, err = run("show", "resnet1d@width=16", *files, "--threads", "1")
    assert (code, err) == (0, "")
    row = json.loads((tmp_path / "a.json").read_text())
    assert [stage["name"] for stage in row["stages"]] == ["stem", "block1", "block2", "block3", "block4"]
    assert sum(stage["parameters"] for stage in row["stages"]) == row["parameters"]
    assert sum(stage["share"] for stage in row["stages"]) == pytest.approx(1)
    assert row["stages"][1]["shape"] == [16, 1, 47]
    assert 2 < row["multiply_adds_training"] / row["multiply_adds"] <= 3
    width = {"name": "width", "value": 16, "default": 32, "searched": [16, 24, 32, 48, 64]}
    assert row["options"][0] == width
    assert (row["speed"]["threads"], row["speed"]["batch_size"]) == (1, 4)
    speeds = row["speed"]["beats_per_s"]
    assert {precision: set(passes) for precision, passes in speeds.items()} == {
        precision: {"forward", "training"} for precision in ("fp32", "bf16")
    }
    assert all(speed > 0 for passes in speeds.values() for speed in passes.values())
    for said in ("16 × 1 × 47", "16, 24, 32, 48, 64", "Beats/s on", "1 thread, batch 4", str(tmp_path / "a.svg")):
        assert said in out
    assert "resnet1d@width=16" in "".join(ElementTree.fromstring((tmp_path / "a.svg").read_text()).itertext())


def test_nothing_is_drawn_unasked(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = run("show", "gru@width=24,depth=1", "--threads", "1")
    assert (code, list(tmp_path.iterdir())) == (0, [])
    assert "recurrent" in out and ".svg" not in out


def test_a_large_encoder_is_measured_with_fewer_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(show, "SECONDS", 0.0)
    monkeypatch.setattr(show, "MOST_MULTIPLY_ADDS", 10e6)
    encoder = models.build(models.parse("resnet1d@width=16"))
    step = show.multiply_adds(encoder, show.beats(encoder, 1), backward=True)
    speed = show.measure(encoder, show.Machine())
    assert speed["batch_size"] * step <= 10e6 < 2 * speed["batch_size"] * step
    assert all(parameter.grad is None for parameter in encoder.parameters())


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["show", "alexnet"], ["unknown architecture 'alexnet'", "resnet1d", "tsai:MODEL"]),
        (["show", "resnet1d@colour=1"], ["resnet1d has no option 'colour'", "width, kernel"]),
        (["show", "resnet1d@width=wide"], ["option width cannot be 'wide'"]),
        (["show", "resnet1d@width"], ["NAME=VALUE", "'width'"]),
        (["show", "resnet1d@kernel=4"], ["odd kernel, not 4"]),
        (["show", "transformer1d@dim=30,heads=4"], ["heads that divide dim", "dim 30"]),
        (["show", "tsai:Nothing"], ["tsai has no", "Nothing"]),
        (["show", "timm:"], ["timm has no model ''"]),
        (["show", "resnet1d", "--threads", "0"], ["--threads 0"]),
        (["show", "resnet1d", "--svg", "."], ["--svg", "is a folder"]),
        (["show", "resnet1d", "--json", f"{__file__}/a.json"], ["--json", "cannot be written to"]),
        (["show"], ["models --help"]),
        (["draw"], ["draw", "models --help"]),
    ],
    ids=lambda part: " ".join(part[:2]) if part[0] in ("show", "draw") else "",
)
def test_bad_input_is_one_line(run: Run, args: list[str], said: list[str]) -> None:
    assert_refused(run(*args), said)


@pytest.mark.parametrize("args", [("list",), ("show",)], ids=" ".join)
def test_help_of_a_command_says_what_it_takes(
    args: tuple[str, ...], python: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = python("-X", "importtime", "-m", "models", *args, "--help")
    assert done.returncode == 0 and f"usage: python -m models {args[0]}" in done.stdout
    assert not {"torch", "rich.table", "timm", "tsai"} & {
        line.split("|")[-1].strip() for line in done.stderr.split("\n")
    }
