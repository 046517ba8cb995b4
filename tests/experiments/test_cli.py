from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from experiments import cli


@dataclass(frozen=True, kw_only=True)
class Brew(cli.Report):
    """Brew tea."""

    leaves: str
    """What to brew."""
    cups: int = 1
    """How many cups."""
    colour: Literal["green", "black"] = "black"
    """Of the leaves."""
    fault: str = ""
    """What goes wrong."""

    def run(self) -> None:
        cli.at_least_one(cups=self.cups)
        faults: dict[str, BaseException] = {
            "value": ValueError("a line\n   and another"),
            "file": FileNotFoundError(2, "No such file", "kettle"),
            "interrupt": KeyboardInterrupt(),
            "bug": KeyError("a bug"),
        }
        if self.fault:
            raise faults[self.fault]
        print(f"{self.cups} cups of {self.leaves}")
        self.write({"cups": self.cups})


def run(args: list[str], commands: cli.Commands = Brew) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main("tea", commands, args)
    assert isinstance(stop.value.code, int)
    return stop.value.code


def refusal(args: list[str], capsys: pytest.CaptureFixture[str], commands: cli.Commands = Brew) -> str:
    assert run(args, commands) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    return captured.err


def test_a_command_runs_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--leaves", "assam", "--cups", "2", "--json", str(tmp_path / "a.json")]) == 0
    assert capsys.readouterr() == ("2 cups of assam\n", "")
    assert (tmp_path / "a.json").read_text() == '{\n  "cups": 2\n}\n'


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--leaves", "a", "--sugar", "1"], ["--sugar"]),
        (["--leaves", "a", "--cups", "many"], ["--cups", "many"]),
        (["--leaves", "a", "--colour", "blue"], ["--colour", "blue", "green", "black"]),
        ([], ["--leaves"]),
        (["--leaves", "a", "--cups", "0"], ["--cups 0: at least 1 is needed"]),
        (["--leaves", "a", "--cups", "-3"], ["--cups -3: at least 1 is needed"]),
        (["--leaves", "a", "--fault", "value"], ["a line and another"]),
        (["--leaves", "a", "--fault", "file"], ["No such file", "kettle"]),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(args: list[str], said: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    message = refusal(args, capsys)
    assert [part for part in said if part not in message] == []


def test_a_refused_flag_points_to_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert "(see python -m tea --help)" in refusal(["--leaves", "a", "--sugar", "1"], capsys)


@pytest.mark.parametrize("args", [[], ["boil"]])
def test_a_missing_or_unknown_subcommand_lists_the_choices(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    message = refusal(args, capsys, {"brew": Brew, "pour": Brew})
    assert "brew" in message and "pour" in message


def test_a_subcommand_takes_its_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["pour", "--leaves", "assam"], {"brew": Brew, "pour": Brew}) == 0
    assert capsys.readouterr().out == "1 cups of assam\n"


def test_an_interrupt_is_exit_130(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--leaves", "a", "--fault", "interrupt"]) == 130
    assert capsys.readouterr() == ("", "interrupted\n")


def test_a_bug_is_not_dressed_up_as_a_mistake() -> None:
    with pytest.raises(KeyError, match="a bug"):
        cli.main("tea", Brew, ["--leaves", "a", "--fault", "bug"])


def test_a_traceback_for_those_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEART_TRACEBACK", "1")
    with pytest.raises(ValueError, match="a line"):
        cli.main("tea", Brew, ["--leaves", "a", "--fault", "value"])


def test_help_is_exit_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    out = capsys.readouterr().out
    assert "usage: python -m tea" in out and "How many cups." in out


def test_writable(tmp_path: Path) -> None:
    cli.writable(tmp_path / "a.pt")
    cli.writable(tmp_path / "new" / "deeper" / "a.pt")
    (tmp_path / "file").touch()
    cli.writable(tmp_path / "file")
    with pytest.raises(ValueError, match=f"--out {tmp_path} is a folder"):
        cli.writable(tmp_path)
    with pytest.raises(ValueError, match="cannot be written to"):
        cli.writable(tmp_path / "file" / "a.pt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_a_read_only_folder_is_found_out_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)  # noqa: ARG005  (root may write anywhere)
    with pytest.raises(ValueError, match=f"{tmp_path} cannot be written to"):
        cli.writable(tmp_path / "new" / "a.pt")


def test_the_data_folder_is_the_flag_then_the_environment_then_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEART_DATA_DIR", str(tmp_path / "environment"))
    assert cli.DataFlags(data_dir=tmp_path / "flag").data_folder == tmp_path / "flag"
    assert cli.DataFlags().data_folder == tmp_path / "environment"
    for unset in ("", None):
        if unset is None:
            monkeypatch.delenv("HEART_DATA_DIR")
        else:
            monkeypatch.setenv("HEART_DATA_DIR", unset)
        assert cli.DataFlags().data_folder == cli.ROOT / "data"
