import hashlib
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from data import download as module
from data.download import download
from data.known import PUBLISHED, Published

NAME = "heart_test.parq"
CONTENT = np.random.default_rng(0).bytes(1_000_000)


class Server(ThreadingHTTPServer):
    """Serves CONTENT, in the way that `behaviour` says, and remembers the ranges it was asked for."""

    daemon_threads = True
    behaviour = "right"

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges: list[str | None] = []

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        behaviour = self.server.behaviour
        if behaviour == "404":
            self.send_error(404)
            return
        first = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and behaviour != "no ranges" else 0
        body = {"wrong": CONTENT[::-1], "short": CONTENT[:-1], "endless": CONTENT * 3}.get(behaviour, CONTENT)[first:]
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(body)))
        if first:
            start = 0 if behaviour == "wrong range" else first
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.end_headers()
        self.wfile.write(body[:300_000] if behaviour == "cut" else body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setitem(PUBLISHED, NAME, Published(len(CONTENT), hashlib.sha256(CONTENT).hexdigest()))
    for variable in ("http_proxy", "HTTP_PROXY"):
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


def test_the_base_address_comes_from_the_environment(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEART_DOWNLOAD_BASE", server.base)
    assert download(NAME, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("behaviour", ["wrong", "short", "endless"])
def test_other_bytes_are_refused_and_removed(behaviour: str, server: Server, tmp_path: Path) -> None:
    server.behaviour = behaviour
    assert "not the published heart_test.parq" in refused(tmp_path, server.base)
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_server_is_told(server: Server, tmp_path: Path) -> None:
    server.behaviour = "404"
    assert "the server answered 404" in refused(tmp_path, server.base)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("then", ["right", "no ranges"])
def test_a_cut_is_told_and_the_next_call_goes_on(then: str, server: Server, tmp_path: Path) -> None:
    server.behaviour = "cut"
    assert "cut after 300000 bytes" in refused(tmp_path, server.base)
    assert [path.name for path in tmp_path.iterdir()] == [f"{NAME}.part"]
    server.behaviour = then
    assert download(NAME, tmp_path, server.base).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=300000-"]


def test_a_range_from_elsewhere_is_refused(server: Server, tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT[:1000])
    server.behaviour = "wrong range"
    assert "asked for bytes from 1000 on" in refused(tmp_path, server.base)
    assert (tmp_path / f"{NAME}.part").read_bytes() == CONTENT[:1000]


def test_a_whole_part_needs_no_server(server: Server, tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT)
    assert download(NAME, tmp_path, server.base).read_bytes() == CONTENT
    assert server.ranges == []


def test_a_spoilt_part_is_thrown_away(server: Server, tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(bytes(1000))
    assert "not the published" in refused(tmp_path, server.base)
    assert download(NAME, tmp_path, server.base).read_bytes() == CONTENT


def test_offline_names_the_ways_by_hand(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    message = refused(tmp_path, f"http://127.0.0.1:{port}")
    for said in ("no connection", "git lfs pull", f"copy data/{NAME} to {tmp_path}", "HEART_DATA_DIR or --data-dir"):
        assert said in message


def test_a_silent_server_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert "timed out" in refused(tmp_path, f"http://127.0.0.1:{silent.getsockname()[1]}")


def test_only_web_addresses_and_published_names(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not an http"):
        download(NAME, tmp_path, f"file://{tmp_path}")
    with pytest.raises(ValueError, match=r"no published file other\.parq; choose from heart_big_train\.parq"):
        download("other.parq", tmp_path)


def refused(folder: Path, base: str) -> str:
    with pytest.raises(ValueError) as caught:
        download(NAME, folder, base)
    assert "\n" not in str(caught.value)
    return str(caught.value)
