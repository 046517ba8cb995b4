"""Files from their official addresses: resumable, checked by SHA-256, whole or absent."""

import fcntl
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from functools import partial
from http.client import HTTPException, HTTPResponse, IncompleteRead
from pathlib import Path, PurePosixPath
from threading import Event
from typing import IO, NamedTuple

from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from data.known import DATABASES, PUBLISHED, Published, database_by_hand
from experiments.files import sha256, write_bytes

MEDIA = "https://media.githubusercontent.com/media/raoulg/MADS-exam-25/main/data"
"""Where GitHub serves the content of Git LFS files."""
USER_AGENT = "heartbeat-transfer/0.1"
SUMS = "SHA256SUMS.txt"
TIMEOUT_S = 10
CHUNK_BYTES = 1 << 18
NUM_AT_ONCE = 8
MAX_FAILED = 8
"""After so many files of a database that failed, the others are not tried."""

Tell = Callable[[int], None]
"""Is told by how many bytes a part grew, or shrank."""


class Fetched(NamedTuple):
    folder: Path
    num_files: int
    num_downloaded: int
    num_bytes: int
    """Bytes that were downloaded."""


class _Stopped(Exception):
    """The other files are not wanted any more."""


def download(name: str, folder: Path, base: str | None = None) -> Path:
    """Download a published file into `folder`, unless it is there already.

    What arrived before a cut stays in `NAME.part`, and the next call goes on from there. The file takes its name only
    once its SHA-256 is the published one.

    Args:
        base: address of the folder that holds the file (default: $HEART_DOWNLOAD_BASE, else the course's).

    Raises:
        ValueError: no published file of this name, no connection, a cut, other bytes than the published ones, or
            another process downloads it; one line with the ways to get the file by hand.
    """
    if name not in PUBLISHED:
        raise ValueError(f"no published file {name}; choose from {', '.join(PUBLISHED)}")
    address, path, part = f"{_base(base, MEDIA)}/{name}", folder / name, folder / f"{name}.part"
    with _progress(DownloadColumn(), TransferSpeedColumn()) as progress:
        have = part.stat().st_size if part.exists() else 0
        task = progress.add_task(name, completed=have, total=PUBLISHED[name].num_bytes)
        try:
            _ensure(address, path, PUBLISHED[name], partial(progress.advance, task))
        except ValueError as error:
            raise ValueError(f"{error}; {_again(_course_by_hand(name, folder))}") from error
    return path


def download_database(name: str, data_dir: Path, base: str | None = None) -> Fetched:
    """Download the files of a PhysioNet database that are not in `data_dir`/`name` with the right SHA-256.

    Its SHA256SUMS.txt is fetched anew, then the files, several at once, each as `download` does it. A file that fails
    does not keep the others from being tried, unless many fail.

    Args:
        base: address of the folder that holds the files (default: $HEART_DOWNLOAD_BASE, else PhysioNet's).

    Raises:
        ValueError: no database of this name, its SHA256SUMS.txt cannot be had or names files outside of the folder,
            or files failed; one line: how many are here, the first that failed and why, the ways to get them by hand.
    """
    if name not in DATABASES:
        raise ValueError(f"no database {name}; choose from {', '.join(DATABASES)}")
    address, folder = _base(base, DATABASES[name].address), data_dir / name
    try:
        sums = _fetch_sums(f"{address}/{SUMS}", folder / SUMS)
        wanted = {path: sha for path, sha in sums.items() if re.fullmatch(DATABASES[name].files, path)}
        if not wanted:
            raise ValueError(f"{address}/{SUMS} lists none of the files of {name}")
        return _ensure_all(address, folder, wanted)
    except ValueError as error:
        raise ValueError(f"{error}; {_again(database_by_hand(name, data_dir))}") from error


def _base(base: str | None, official: str) -> str:
    address = base or os.environ.get("HEART_DOWNLOAD_BASE") or official
    if not address.startswith(("http://", "https://")):
        raise ValueError(f"{address} is not an http:// or https:// address")
    return address.rstrip("/")


def _fetch_sums(address: str, path: Path) -> dict[str, str]:
    """SHA-256 of each path that the database lists; the listing is kept beside its files."""
    try:
        with _open(address) as response:
            content = response.read()
        sums = _parse_sums(content.decode(errors="replace"), address)
        write_bytes(path, content)
    except (OSError, HTTPException) as error:
        raise ValueError(f"cannot download {address}: {_reason(error)}") from error
    return sums


def _parse_sums(content: str, address: str) -> dict[str, str]:
    sums: dict[str, str] = {}
    for number, line in enumerate(content.strip().splitlines(), start=1):
        found = re.fullmatch(r"([0-9a-f]{64}) [ *]?(\S.*)", line)
        if not found:
            raise ValueError(f"{address}: line {number} is not a SHA-256 and a path: {line[:80]!r}")
        sha, path = found.groups()
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise ValueError(f"{address}: line {number}: {path!r} lies outside of the database; nothing downloaded")
        sums[path] = sha
    return sums


def _ensure_all(address: str, folder: Path, wanted: dict[str, str]) -> Fetched:
    stop, num_downloaded = Event(), 0
    failed: dict[str, str] = {}
    columns = MofNCompleteColumn(), TextColumn("{task.fields[speed]}"), TimeRemainingColumn()
    with _progress(*columns) as progress, ThreadPoolExecutor(NUM_AT_ONCE) as pool:
        files = progress.add_task(folder.name, total=len(wanted), speed="")
        received = progress.add_task("bytes", visible=False)

        def tell(num_bytes: int) -> None:
            if stop.is_set():
                raise _Stopped
            progress.advance(received, max(num_bytes, 0))

        try:
            running = {
                pool.submit(_ensure, f"{address}/{path}", folder / path, Published(None, sha), tell): path
                for path, sha in wanted.items()
            }
            for done in as_completed(running):
                try:
                    num_downloaded += done.result()
                except ValueError as error:
                    failed[running[done]] = str(error)
                    if len(failed) == MAX_FAILED:
                        break
                progress.update(files, advance=1, speed=f"{decimal(int(progress.tasks[received].speed or 0))}/s")
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
        num_bytes = int(progress.tasks[received].completed)
    if failed:
        num_here = sum((folder / path).is_file() for path in wanted if path not in failed)
        raise ValueError(
            f"{num_here} of {len(wanted)} files of {folder.name} are here; "
            f"{len(failed)} failed, the first: {next(iter(failed.values()))}"
        )
    return Fetched(folder, len(wanted), num_downloaded, num_bytes)


def _ensure(address: str, path: Path, expected: Published, tell: Tell) -> bool:
    """Whether the file had to be downloaded.

    Raises:
        ValueError: it cannot be; one line.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        if path.is_file() and sha256(path) == expected.sha256:
            return False
        part.parent.mkdir(parents=True, exist_ok=True)
        with _own(part) as stream:
            went_on = _fetch(address, stream, expected.num_bytes, tell)
            if went_on and sha256(part) != expected.sha256:  # the earlier bytes were torn, or of another file
                _empty(stream, tell)
                _fetch(address, stream, expected.num_bytes, tell)
            _check(address, part, stream, expected)
            part.replace(path)
    except (OSError, HTTPException) as error:
        raise ValueError(f"cannot download {address}: {_reason(error)}") from error
    return True


@contextmanager
def _own(part: Path) -> Iterator[IO[bytes]]:
    """Open `part` to append to it, as the only one who does; it is not left behind empty."""
    with part.open("ab") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owned = False
        else:  # between opening and locking, another process may have finished the file: it has another name then
            owned = part.exists() and os.path.samestat(os.fstat(stream.fileno()), part.stat())
        if not owned:
            raise ValueError(f"another process is downloading {part.with_suffix('')}")
        try:
            yield stream
        finally:
            if stream.seek(0, os.SEEK_END) == 0:
                part.unlink(missing_ok=True)


def _fetch(address: str, stream: IO[bytes], num_bytes: int | None, tell: Tell) -> bool:
    """Append what the part lacks, or begin it anew where the server sends the whole file.

    Returns:
        Whether the part still begins with earlier bytes. Where the server has none to append, or others than those
        asked for, the SHA-256 decides whether the part is whole.
    """
    have = stream.seek(0, os.SEEK_END)
    if num_bytes is not None and have >= num_bytes:
        return True
    try:
        with _open(address, have) as response:
            went_on = have > 0 and response.status == 206
            if went_on and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                return True
            if not went_on:
                _empty(stream, tell)
            # One byte more than published is enough to know that it is another file.
            _copy(response, stream, None if num_bytes is None else num_bytes + 1, tell)
            return went_on
    except urllib.error.HTTPError as error:
        if not (have and error.code == 416):
            raise
        error.close()
        return True


def _open(address: str, first: int = 0) -> HTTPResponse:
    headers = {"User-Agent": USER_AGENT} | ({"Range": f"bytes={first}-"} if first else {})
    return urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=TIMEOUT_S)


def _copy(response: HTTPResponse, stream: IO[bytes], limit: int | None, tell: Tell) -> None:
    """Append to the part what the server sends, until the part has `limit` bytes."""
    announced, first = response.length, stream.tell()
    while (limit is None or stream.tell() < limit) and (chunk := response.read1(CHUNK_BYTES)):
        stream.write(chunk)
        tell(len(chunk))
    have = stream.tell()
    if announced is not None and have - first < announced and (limit is None or have < limit):
        raise HTTPException(f"the connection was cut after {have} bytes")
    stream.flush()
    os.fsync(stream.fileno())


def _empty(stream: IO[bytes], tell: Tell) -> None:
    tell(-stream.seek(0, os.SEEK_END))
    stream.truncate(0)
    stream.seek(0)


def _check(address: str, part: Path, stream: IO[bytes], expected: Published) -> None:
    found = sha256(part)
    if found != expected.sha256:
        num_bytes = stream.seek(0, os.SEEK_END)
        stream.truncate(0)
        size = "" if expected.num_bytes is None else f"{expected.num_bytes} bytes, "
        raise ValueError(
            f"{address} sent {num_bytes} bytes with SHA-256 {found[:12]}…, not the published {part.stem} "
            f"({size}{expected.sha256[:12]}…)"
        )


def _progress(*columns: ProgressColumn) -> Progress:
    name, console = TextColumn("{task.description}"), Console(stderr=True)
    return Progress(name, BarColumn(), *columns, console=console, transient=True, disable=not console.is_terminal)


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        with error:
            return f"the server answered {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        return f"no connection ({error.reason})"
    if isinstance(error, IncompleteRead):
        return f"the connection was cut after {len(error.partial)} bytes"
    return " ".join(str(error).split()) or type(error).__name__


def _again(by_hand: str) -> str:
    return f"run it again to go on from there, or get it by hand: {by_hand}"


def _course_by_hand(name: str, folder: Path) -> str:
    return (
        f"clone https://github.com/raoulg/MADS-exam-25, run `git lfs pull` and copy data/{name} to {folder}, "
        f"or name the folder that has it with HEART_DATA_DIR or --data-dir"
    )
