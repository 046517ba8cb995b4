import ast
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("data", "models", "experiments", "pretrain", "finetune")
MODULES = sorted(path.relative_to(ROOT).as_posix() for room in ROOMS for path in (ROOT / room).rglob("*.py"))
COMMAND_LINES = ("__main__.py", "cli.py", "show.py", "explore.py")
HEAVY = ("torch", "ray", "mlflow", "polars", "pyarrow", "sklearn", "imblearn", "scipy", "optuna", "timm", "tsai")
ONLY_IN = {
    "ray": (
        *("experiments/cluster.py", "pretrain/compare.py", "pretrain/distributed.py"),
        *("finetune/tune.py", "finetune/finals.py", "finetune/grid.py", "finetune/searchers.py"),
        *("finetune/schedulers.py", "finetune/shelves.py"),
    ),
    "mlflow": ("experiments/tracking.py",),
}


def may_import(module: str, imported: str) -> bool:
    """Whether `module` (a path) may import `imported` (a dotted name) of another room."""
    room, other = module.split("/")[0], imported.split(".")[0]
    if imported in ("experiments.files", "experiments.files.*"):
        return True
    if {room, other} == {"pretrain", "finetune"}:
        return False
    if room in ("pretrain", "finetune"):
        return True
    return other == "experiments" and module.split("/")[-1] in COMMAND_LINES


def imports(module: str) -> Iterator[str]:
    """Dotted names of the modules that the file imports, anywhere in it; types alone do not count."""
    yield from imports_of((ROOT / module).read_text())


def imports_of(source: str) -> Iterator[str]:
    tree = ast.parse(source)
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for part in node.body
        for inner in ast.walk(part)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import: {ast.unparse(node)}"
            whole = node.module or ""
            # `from experiments import files` names a module, `from data.split import Split` what is in one.
            yield from (f"{whole}.{alias.name}" if whole in ROOMS else whole for alias in node.names)


def test_the_walk_finds_the_rooms() -> None:
    assert {module.split("/")[0] for module in MODULES} == set(ROOMS)
    assert len(MODULES) > 30


def test_the_walk_sees_every_way_to_import() -> None:
    source = (
        "import ray\nimport experiments.loop as loop\nfrom experiments import files\nfrom models.heads import HEADS\n"
        "def f():\n    from mlflow import client\n"
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from finetune.cli import Tune\n"
    )
    expected = {"ray", "experiments.loop", "experiments.files", "models.heads", "mlflow", "typing"}
    assert set(imports_of(source)) == expected


@pytest.mark.parametrize(
    ("module", "imported", "allowed"),
    [
        ("data/store.py", "experiments.files", True),
        ("data/store.py", "experiments.loop", False),
        ("data/cli.py", "experiments.cli", True),
        ("data/cli.py", "models.heads", False),
        ("models/heads.py", "data.beats", False),
        ("experiments/loop.py", "models.heads", False),
        ("experiments/cli.py", "finetune.cli", False),
        ("finetune/train.py", "data.beats", True),
        ("finetune/train.py", "pretrain.probe", False),
        ("pretrain/train.py", "finetune.train", False),
    ],
)
def test_the_rule_itself(module: str, imported: str, allowed: bool) -> None:
    assert may_import(module, imported) is allowed


@pytest.mark.parametrize("module", MODULES)
def test_rooms_import_only_what_they_may(module: str) -> None:
    room = module.split("/")[0]
    across = {name for name in imports(module) if name.split(".")[0] in ROOMS and name.split(".")[0] != room}
    assert [name for name in sorted(across) if not may_import(module, name)] == []


@pytest.mark.parametrize("package", ONLY_IN)
def test_a_framework_has_one_door(package: str) -> None:
    found = [module for module in MODULES if package in {name.split(".")[0] for name in imports(module)}]
    assert set(found) <= set(ONLY_IN[package])
    assert found != []


def test_nothing_of_the_project_is_installed() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert setuptools == {"packages": [], "py-modules": []}


@pytest.mark.parametrize(
    "args",
    [
        ("data",),
        ("models",),
        ("pretrain",),
        ("pretrain", "compare"),
        ("finetune",),
        ("finetune", "train"),
        ("finetune", "tune"),
        ("finetune", "compare"),
        ("finetune", "schedule"),
        ("finetune", "evaluate"),
        ("finetune", "predict"),
        ("finetune", "export"),
        ("finetune", "explain"),
    ],
    ids=" ".join,
)
def test_help_is_light(args: tuple[str, ...], python: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    program = (
        "import runpy, sys\n"
        "try:\n    runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)\n"
        "except SystemExit as stop:\n    assert stop.code == 0\n"
        f"assert not {set(HEAVY)} & set(sys.modules), {set(HEAVY)} & set(sys.modules)"
    )
    done = python("-c", program, *args, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"usage: python -m {' '.join(args)}" in done.stdout
