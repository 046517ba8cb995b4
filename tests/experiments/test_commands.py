import json
import subprocess
from collections.abc import Callable
from pathlib import Path

from experiments.space import Space, space_names

Python = Callable[..., subprocess.CompletedProcess[str]]


def test_spaces_are_listed_and_one_is_shown(tmp_path: Path, python: Python) -> None:
    done = python("-m", "experiments", "spaces", "--json", tmp_path / "all.json")
    assert (done.returncode, done.stderr) == (0, "")
    assert [name for name in space_names() if name not in done.stdout] == []
    assert [space["name"] for space in json.loads((tmp_path / "all.json").read_text())] == space_names()
    done = python("-m", "experiments", "spaces", "small", "--json", tmp_path / "one.json")
    assert done.returncode == 0 and "schedule" in done.stdout
    assert Space.from_json(json.loads((tmp_path / "one.json").read_text())) == Space.load("small")


def test_an_unknown_space_is_one_line(python: Python) -> None:
    done = python("-m", "experiments", "spaces", "huge")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: no search space 'huge'; choose from default, small, wide, or give the path of a .toml file\n"
    )
