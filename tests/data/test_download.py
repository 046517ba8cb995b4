import errno
import fcntl
import hashlib
import io
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO
from unittest.mock import Mock

import numpy as np
import pytest
from rich.console import Console

from data import download as module
from data.download import SUMS, download, download_database
from data.known import DATABASES, KAGGLE_FILES, PUBLISHED, Published, kaggle_by_hand

ROOT = Path(__file__).parents[2]
NAME = "heart_test.parq"
CONTENT = np.random.default_rng(0).bytes(1_000_000)

WANTED = {
    "mitdb": [f"{record}.{suffix}" for record in (100, 101, 234) for suffix in ("hea", "dat", "atr")],
    "ptbdb": [f"patient{name}.{suffix}" for name in ("001/s0010_re", "294/s0559_re") for suffix in ("hea", "dat")],
    "ptbxl": ["ptbxl_database.csv", "scp_statements.csv", "LICENSE.txt"]
    + [f"records100/{name}.{suffix}" for name in ("00000/00001_lr", "21000/21837_lr") for suffix in ("hea", "dat")],
}
UNWANTED = {
    "mitdb": ["RECORDS", "100.xws", "102-0.atr", "mitdbdir/100.hea", "x_mitdb/x_108.hea", "100.hea.html"],
    "ptbdb": ["RECORDS", "patient001/s0010_re.xyz", "s0010_re.hea", "html/patient001/s0010_re.hea"],
    "ptbxl": ["RECORDS", "records500/00000/00001_hr.dat", "records100/00000/index.html", "old/ptbxl_database.csv"],
}


class Server(ThreadingHTTPServer):
    """Serves `files`, in the way that `behaviour` says, and remembers what it was asked for."""

    daemon_threads = True
    behaviour = "right"
    only = ""
    """The one path that `behaviour` is about; all, if empty."""
    cuts: Callable[[], int] | None = None
    """How many bytes to send before the connection is cut."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {NAME: CONTENT}
        self.paths: list[str] = []
        self.ranges: list[str | None] = []
        self.agents: set[str | None] = set()

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def serve_database(self, paths: list[str], num_bytes: int = 3000) -> None:
        generator = np.random.default_rng(0)
        self.files = {path: generator.bytes(num_bytes) for path in paths}
        lines = [f"{hashlib.sha256(content).hexdigest()} {path}\n" for path, content in self.files.items()]
        self.files[SUMS] = "".join(lines).encode()

    def handle_error(self, request: object, client_address: object) -> None:
        """The clients of these tests hang up when they please."""


class Handler(BaseHTTPRequestHandler):
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        asked, path = self.headers.get("Range"), self.path.removeprefix("/")
        self.server.ranges.append(asked)
        self.server.paths.append(path)
        self.server.agents.add(self.headers.get("User-Agent"))
        behaviour = self.server.behaviour if self.server.only in ("", path) else "right"
        if behaviour == "404" or path not in self.server.files:
            self.send_error(404)
            return
        content = self.server.files[path]
        first = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and behaviour != "no ranges" else 0
        if asked and first >= len(content):
            self.send_error(416)
            return
        body = {"wrong": content[::-1], "short": content[:-1], "endless": content * 3}.get(behaviour, content)[first:]
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(body)))
        if first:
            start = 0 if behaviour == "wrong range" else first
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        self._send(body, behaviour)

    def _send(self, body: bytes, behaviour: str) -> None:
        if behaviour == "drip":
            for start in range(0, len(body), 1000):
                self.wfile.write(body[start : start + 1000])
                time.sleep(0.004)
        elif behaviour == "cut":
            self.wfile.write(body[: self.server.cuts() if self.server.cuts else len(body) * 3 // 10])
        else:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setitem(PUBLISHED, NAME, Published(len(CONTENT), hashlib.sha256(CONTENT).hexdigest()))
    for variable in ("http_proxy", "HTTP_PROXY", "HEART_DOWNLOAD_BASE"):
        monkeypatch.delenv(variable, raising=False)
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_the_right_bytes_arrive_and_nothing_else(server: Server, tmp_path: Path) -> None:
    path = download(NAME, tmp_path / "new", server.base + "/")
    assert path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]
    assert server.ranges == [None]
    assert server.agents == {"heartbeat-transfer/0.1"}


def test_a_file_that_is_here_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(CONTENT)
    assert download(NAME, tmp_path, server.base) == tmp_path / NAME
    assert server.paths == []


def test_the_base_address_comes_from_the_environment(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEART_DOWNLOAD_BASE", server.base)
    assert download(NAME, tmp_path).read_bytes() == CONTENT
    server.serve_database(WANTED["mitdb"])
    assert download_database("mitdb", tmp_path).num_downloaded == 9


@pytest.mark.parametrize("behaviour", ["wrong", "short", "endless"])
def test_other_bytes_are_refused_and_removed(behaviour: str, server: Server, tmp_path: Path) -> None:
    server.behaviour = behaviour
    found = re.search(r"sent (\d+) bytes .* not the published heart_test.parq", refused(tmp_path, server.base))
    assert found and int(found[1]) <= len(CONTENT) + module.CHUNK_BYTES
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_server_is_told(server: Server, tmp_path: Path) -> None:
    server.behaviour = "404"
    assert "the server answered 404" in refused(tmp_path, server.base)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("then", ["right", "no ranges"])
def test_a_cut_is_told_and_the_next_call_goes_on(then: str, server: Server, tmp_path: Path) -> None:
    server.behaviour = "cut"
    assert "cut after 300000 bytes; run it again" in refused(tmp_path, server.base)
    assert [path.name for path in tmp_path.iterdir()] == [f"{NAME}.part"]
    server.behaviour = then
    assert download(NAME, tmp_path, server.base).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=300000-"]


@pytest.mark.parametrize("seed", range(5))
def test_many_cuts_anywhere_end_in_the_right_bytes(seed: int, server: Server, tmp_path: Path) -> None:
    draw = random.Random(seed)
    server.behaviour, server.cuts = "cut", lambda: draw.choice((0, 1, draw.randrange(200_000)))
    have, part = 0, tmp_path / f"{NAME}.part"
    for _ in range(200):
        try:
            download(NAME, tmp_path, server.base)
            break
        except ValueError as error:
            assert "the connection was cut" in str(error)
            assert not (tmp_path / NAME).exists()
            arrived = part.read_bytes() if part.exists() else b""
            assert arrived == CONTENT[: len(arrived)] and len(arrived) >= have
            have = len(arrived)
    assert [path.name for path in tmp_path.iterdir()] == [NAME]
    assert (tmp_path / NAME).read_bytes() == CONTENT
    starts = [int(asked[6:-1]) if asked else 0 for asked in server.ranges]
    assert len(starts) > 5 and starts == sorted(starts)


def test_another_range_than_asked_for_is_left_and_all_fetched(server: Server, tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT[:1000])
    server.behaviour = "wrong range"
    assert download(NAME, tmp_path, server.base).read_bytes() == CONTENT
    assert server.ranges == ["bytes=1000-", None]


def test_a_whole_part_needs_no_server(server: Server, tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT)
    assert download(NAME, tmp_path, server.base).read_bytes() == CONTENT
    assert server.ranges == []


@pytest.mark.parametrize("num_bytes", [1, 1000, len(CONTENT) - 1, len(CONTENT), len(CONTENT) + 1, 2 * len(CONTENT)])
def test_a_spoilt_part_is_repaired_in_the_same_call(num_bytes: int, server: Server, tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(bytes(num_bytes))
    assert download(NAME, tmp_path, server.base).read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == [NAME]
    assert server.ranges == ([f"bytes={num_bytes}-"] if num_bytes < len(CONTENT) else []) + [None]


def test_wrong_bytes_after_a_spoilt_part_are_fetched_once_more_only(server: Server, tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(bytes(1000))
    server.behaviour = "wrong"
    assert "not the published" in refused(tmp_path, server.base)
    assert server.ranges == ["bytes=1000-", None]
    assert list(tmp_path.iterdir()) == []


def test_offline_names_the_ways_by_hand(tmp_path: Path) -> None:
    message = refused(tmp_path, nobody_listens())
    for said in ("no connection", "git lfs pull", f"copy data/{NAME} to {tmp_path}", "HEART_DATA_DIR or --data-dir"):
        assert said in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("database", DATABASES)
def test_offline_names_the_ways_by_hand_for_a_database(database: str, tmp_path: Path) -> None:
    message = refused_database(tmp_path, nobody_listens(), database)
    address = DATABASES[database].address
    folder = tmp_path / database
    for said in ("no connection", f"-P {folder} {address}`", f"{address.replace('files', 'content', 1)} into {folder}"):
        assert said in message
    assert f"{database}/ with HEART_DATA_DIR or --data-dir" in message


@pytest.mark.parametrize("name", KAGGLE_FILES)
def test_kaggle_is_by_hand_and_says_what_goes_where(name: str, tmp_path: Path) -> None:
    message = kaggle_by_hand(name, tmp_path)
    for said in ("shayanfazeli/heartbeat", *KAGGLE_FILES[name], f"into {tmp_path}", "account", "HEART_DATA_DIR"):
        assert said in message


def test_a_silent_server_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        base = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert "timed out" in refused(tmp_path, base)
        assert "timed out" in refused_database(tmp_path, base)


def test_only_web_addresses_and_published_names(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not an http"):
        download(NAME, tmp_path, f"file://{tmp_path}")
    with pytest.raises(ValueError, match=r"no published file other\.parq; choose from heart_big_train\.parq"):
        download("other.parq", tmp_path)
    with pytest.raises(ValueError, match="no database ptb-xl; choose from mitdb, ptbdb, ptbxl"):
        download_database("ptb-xl", tmp_path)


@pytest.mark.parametrize("database", DATABASES)
def test_a_database_arrives_with_its_subfolders_and_nothing_else(database: str, server: Server, tmp_path: Path) -> None:
    server.serve_database(WANTED[database] + UNWANTED[database])
    fetched = download_database(database, tmp_path, server.base + "/")
    num_files = len(WANTED[database])
    assert fetched == (tmp_path / database, num_files, num_files, 3000 * num_files)
    assert files(fetched.folder) == {path: server.files[path] for path in [*WANTED[database], SUMS]}
    assert sorted(server.paths) == sorted([*WANTED[database], SUMS])
    assert server.agents == {"heartbeat-transfer/0.1"}


def test_a_second_call_fetches_only_what_is_gone_or_changed(server: Server, tmp_path: Path) -> None:
    server.serve_database(WANTED["ptbdb"])
    folder = download_database("ptbdb", tmp_path, server.base).folder
    server.paths.clear()
    assert download_database("ptbdb", tmp_path, server.base) == (folder, 4, 0, 0)
    assert server.paths == [SUMS]
    changed, gone, *_ = WANTED["ptbdb"]
    (folder / changed).write_bytes(server.files[changed][:-1] + b"x")
    (folder / gone).unlink()
    server.paths.clear()
    assert download_database("ptbdb", tmp_path, server.base) == (folder, 4, 2, 6000)
    assert sorted(server.paths) == sorted([SUMS, changed, gone])
    assert files(folder) == server.files


def test_the_listing_is_fetched_anew(server: Server, tmp_path: Path) -> None:
    server.serve_database(["100.hea"])
    download_database("mitdb", tmp_path, server.base)
    server.serve_database(["101.hea", "100.hea"])
    assert download_database("mitdb", tmp_path, server.base).num_downloaded == 2
    assert files(tmp_path / "mitdb") == server.files


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [("404", "101.dat: the server answered 404"), ("wrong", "not the published 101.dat"), ("cut", "cut after 900 b")],
)
def test_one_file_that_fails_leaves_the_others_and_is_told(
    behaviour: str, said: str, server: Server, tmp_path: Path
) -> None:
    server.serve_database(WANTED["mitdb"])
    server.behaviour, server.only = behaviour, "101.dat"
    message = refused_database(tmp_path, server.base)
    assert "8 of 9 files of mitdb are here; 1 failed, the first: " in message
    assert said in message and "run it again to go on" in message and "wget -r -N -c -np" in message
    expected = {path: content for path, content in server.files.items() if path != "101.dat"}
    kept = {"101.dat.part": server.files["101.dat"][:900]} if behaviour == "cut" else {}
    assert files(tmp_path / "mitdb") == expected | kept
    server.behaviour = "right"
    server.ranges.clear()
    assert download_database("mitdb", tmp_path, server.base).num_downloaded == 1
    assert files(tmp_path / "mitdb") == server.files
    assert server.ranges == [None, "bytes=900-" if behaviour == "cut" else None]


def test_a_file_that_was_changed_and_cannot_be_fetched_does_not_count(server: Server, tmp_path: Path) -> None:
    server.serve_database(WANTED["mitdb"])
    (tmp_path / "mitdb").mkdir()
    (tmp_path / "mitdb" / "101.dat").write_bytes(b"mine")
    server.behaviour, server.only = "404", "101.dat"
    assert "8 of 9 files of mitdb are here" in refused_database(tmp_path, server.base)
    assert (tmp_path / "mitdb" / "101.dat").read_bytes() == b"mine"


def test_when_many_fail_the_others_are_not_tried(server: Server, tmp_path: Path) -> None:
    paths = [f"{record}.dat" for record in range(100, 200)]
    server.serve_database(paths)
    for path in paths:
        del server.files[path]
    assert "0 of 100 files of mitdb are here; 8 failed" in refused_database(tmp_path, server.base)
    assert len(server.paths) < 50


def test_a_whole_part_of_unknown_size_is_known_by_its_sha256(server: Server, tmp_path: Path) -> None:
    server.serve_database(["100.dat"])
    (tmp_path / "mitdb").mkdir()
    (tmp_path / "mitdb" / "100.dat.part").write_bytes(server.files["100.dat"])
    assert download_database("mitdb", tmp_path, server.base).num_bytes == 0
    assert files(tmp_path / "mitdb") == server.files
    assert server.ranges == [None, "bytes=3000-"]


def test_a_server_that_ends_too_early_is_told(server: Server, tmp_path: Path) -> None:
    server.files[NAME] = CONTENT[:500]
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT[:500])
    assert "sent 500 bytes" in refused(tmp_path, server.base)
    assert server.ranges == ["bytes=500-", None]


@pytest.mark.parametrize("num_bytes", [1, 2999, 3000, 3001, 9000])
def test_a_spoilt_part_of_unknown_size_is_repaired(num_bytes: int, server: Server, tmp_path: Path) -> None:
    server.serve_database(["100.dat"])
    (tmp_path / "mitdb").mkdir()
    (tmp_path / "mitdb" / "100.dat.part").write_bytes(bytes(num_bytes))
    assert download_database("mitdb", tmp_path, server.base).num_bytes == 3000 + max(3000 - num_bytes, 0)
    assert files(tmp_path / "mitdb") == server.files
    assert server.ranges == [None, f"bytes={num_bytes}-", None]


@pytest.mark.parametrize("path", ["../100.hea", "/etc/100.hea", "100.hea/../../101.hea", "records100/../../a", ".."])
def test_a_listing_that_names_paths_outside_is_refused(path: str, server: Server, tmp_path: Path) -> None:
    server.serve_database([*WANTED["mitdb"], path])
    message = refused_database(tmp_path / "data", server.base)
    assert f"line 10: {path!r} lies outside of the database" in message
    assert list(tmp_path.iterdir()) == []
    assert server.paths == [SUMS]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<html>\nPlease sign in to this network\n</html>\n", "line 1 is not a SHA-256 and a path: '<html>'"),
        (b"0" * 64 + b"  100.hea\n" + b"0" * 63 + b"  100.dat\n", "line 2 is not a SHA-256 and a path"),
        (b"0" * 64 + b"  RECORDS\n", "lists none of the files of mitdb"),
        (b"", "lists none of the files of mitdb"),
        (b"\xff\xfe\x00", "line 1 is not"),
    ],
)
def test_something_else_than_a_listing_is_refused(content: bytes, said: str, server: Server, tmp_path: Path) -> None:
    server.files[SUMS] = content
    assert said in refused_database(tmp_path, server.base)
    assert server.paths == [SUMS]


@pytest.mark.parametrize("form", ["{sha}  {path}\r\n", "{sha} *{path}\n", "{sha} {path}\n\n"])
def test_listings_of_every_common_form_are_read(form: str, server: Server, tmp_path: Path) -> None:
    server.serve_database(["100.hea"])
    sha = hashlib.sha256(server.files["100.hea"]).hexdigest()
    server.files[SUMS] = form.format(sha=sha, path="100.hea").encode()
    assert download_database("mitdb", tmp_path, server.base).num_downloaded == 1


def test_a_cut_listing_is_not_taken_for_a_whole_one(server: Server, tmp_path: Path) -> None:
    server.serve_database(WANTED["mitdb"])
    download_database("mitdb", tmp_path, server.base)
    server.behaviour, server.only = "cut", SUMS
    server.cuts = lambda: server.files[SUMS].index(b"\n") + 1
    said = f"cannot download {server.base}/{SUMS}: the connection was cut after 73 bytes"
    assert said in refused_database(tmp_path, server.base)
    assert files(tmp_path / "mitdb") == server.files


def test_the_bar_counts_the_files_and_tells_the_rate(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = io.StringIO()
    terminal = partial(Console, file=shown, force_terminal=True, color_system=None, width=100)
    monkeypatch.setattr(module, "Console", lambda **_: terminal())
    server.serve_database(WANTED["mitdb"])
    download_database("mitdb", tmp_path, server.base)
    assert re.search(r"mitdb.* 9/9 .* (bytes|kB|MB)/s", shown.getvalue())


def test_two_processes_do_not_write_one_part(server: Server, tmp_path: Path) -> None:
    part = tmp_path / f"{NAME}.part"
    part.write_bytes(CONTENT[:1000])
    with part.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert f"another process is downloading {tmp_path / NAME};" in refused(tmp_path, server.base)
        assert (part.read_bytes(), server.paths) == (CONTENT[:1000], [])
    assert download(NAME, tmp_path, server.base).read_bytes() == CONTENT


def test_a_part_that_got_its_name_before_it_was_locked_is_left_alone(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = fcntl.flock

    def finished_by_another(stream: IO[bytes], how: int) -> None:
        (tmp_path / f"{NAME}.part").replace(tmp_path / NAME)
        lock(stream, how)

    monkeypatch.setattr(fcntl, "flock", finished_by_another)
    (tmp_path / f"{NAME}.part").write_bytes(b"of the other process")
    assert "another process is downloading" in refused(tmp_path, server.base)
    assert (tmp_path / NAME).read_bytes() == b"of the other process"


def test_calls_at_once_end_in_the_right_files(server: Server, tmp_path: Path) -> None:
    server.serve_database([f"{record}.dat" for record in range(100, 130)], num_bytes=20_000)
    server.behaviour = "drip"

    def call(_: int) -> str:
        try:
            return str(download_database("mitdb", tmp_path, server.base).num_files)
        except ValueError as error:
            return str(error)

    with ThreadPoolExecutor(4) as pool:
        said = list(pool.map(call, range(4)))
    assert all(text == "30" or "another process is downloading" in text for text in said)
    assert any("another process is downloading" in text for text in said)
    server.behaviour = "right"
    download_database("mitdb", tmp_path, server.base)
    assert files(tmp_path / "mitdb") == server.files


def test_a_full_disk_is_one_line(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(os, "fsync", Mock(side_effect=full))
    assert "No space left on device" in refused(tmp_path, server.base)
    assert [path.name for path in tmp_path.iterdir()] == [f"{NAME}.part"]


def test_a_killed_download_leaves_no_wrong_file_and_goes_on(server: Server, tmp_path: Path) -> None:
    draw = random.Random(0)
    server.serve_database([f"{record}.dat" for record in range(100, 140)], num_bytes=50_000)
    server.behaviour = "drip"
    parts: list[int] = []
    for _ in range(5):
        with begun(server, tmp_path) as process:
            time.sleep(draw.uniform(0.0, 0.5))
            process.send_signal(signal.SIGKILL)
            process.wait(timeout=10)
        here = files(tmp_path / "mitdb")
        for path, content in here.items():
            whole = server.files[path.removesuffix(".part")]
            assert whole.startswith(content) if path.endswith(".part") else content == whole
        parts.append(sum(path.endswith(".part") for path in here))
    assert sum(parts) > 5, "the kills came before or after the download, not during it"
    server.behaviour = "right"
    assert download_database("mitdb", tmp_path, server.base).num_files == 40
    assert files(tmp_path / "mitdb") == server.files
    assert any(server.ranges), "nothing went on from where it was"


def test_ctrl_c_stops_at_once_and_keeps_what_is_here(server: Server, tmp_path: Path) -> None:
    server.serve_database([f"{record}.dat" for record in range(100, 110)], num_bytes=2_000_000)
    server.behaviour = "drip"
    with begun(server, tmp_path) as process:
        time.sleep(0.2)
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=30)[1]
    assert time.monotonic() - start < 3
    assert errors.strip().endswith("KeyboardInterrupt")
    kept = files(tmp_path / "mitdb")
    assert all(server.files[path.removesuffix(".part")].startswith(content) for path, content in kept.items())
    assert sum(path.endswith(".part") for path in kept) >= 1


def begun(server: Server, data_dir: Path) -> subprocess.Popen[str]:
    """A process that downloads `mitdb`, from when the server sends it files."""
    server.paths.clear()
    program = "import sys; from pathlib import Path; from data.download import download_database as get; "
    program += f"get('mitdb', Path({str(data_dir)!r}), {server.base!r})"
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    give_up = time.monotonic() + 20
    while len(server.paths) < 2 and process.poll() is None and time.monotonic() < give_up:
        time.sleep(0.005)
    return process


def files(folder: Path) -> dict[str, bytes]:
    """Content of every file below the folder, by its path in there."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def nobody_listens() -> str:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


def refused(folder: Path, base: str) -> str:
    with pytest.raises(ValueError) as caught:
        download(NAME, folder, base)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def refused_database(data_dir: Path, base: str, name: str = "mitdb") -> str:
    with pytest.raises(ValueError) as caught:
        download_database(name, data_dir, base)
    assert "\n" not in str(caught.value)
    return str(caught.value)
