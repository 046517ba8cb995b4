"""The course's files from their official address: resumable, checked by SHA-256, whole or absent."""

import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from data.known import PUBLISHED, Published
from experiments.files import sha256

MEDIA = "https://media.githubusercontent.com/media/raoulg/MADS-exam-25/main/data"
"""Where GitHub serves the content of Git LFS files."""
TIMEOUT_S = 10
CHUNK_BYTES = 1 << 18


def download(name: str, folder: Path, base: str | None = None) -> Path:
    """Download a published file into `folder`.

    What arrived before a cut stays in `NAME.part`, and the next call goes on from there. The file takes its name only
    once its SHA-256 is the published one.

    Args:
        base: address of the folder that holds the file (default: $HEART_DOWNLOAD_BASE, else the course's).

    Raises:
        ValueError: no published file of this name, no connection, a cut, or other bytes than the published ones;
            one line with the ways to get the file by hand.
    """
    if name not in PUBLISHED:
        raise ValueError(f"no published file {name}; choose from {', '.join(PUBLISHED)}")
    expected = PUBLISHED[name]
    address = f"{(base or os.environ.get('HEART_DOWNLOAD_BASE') or MEDIA).rstrip('/')}/{name}"
    if not address.startswith(("http://", "https://")):
        raise ValueError(f"{address} is not an http:// or https:// address")
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{name}.part"
    try:
        _fetch(address, part, expected.num_bytes)
    except (OSError, HTTPException) as error:
        raise ValueError(f"cannot download {address}: {_reason(error)}; {_by_hand(name, folder)}") from error
    return _accept(part, folder / name, expected, address)


def _fetch(address: str, part: Path, num_bytes: int) -> None:
    """Append to `part` what it lacks, or start it again where the server sends the whole file."""
    have = part.stat().st_size if part.exists() else 0
    if have >= num_bytes:
        return
    request = urllib.request.Request(address, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
        resumed = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if response.status == 206 and not resumed:
            raise HTTPException(f"asked for bytes from {have} on, got {response.headers.get('Content-Range')}")
        with part.open("ab" if resumed else "wb") as stream:
            _copy(response, stream, part.stem, have if resumed else 0, num_bytes)
            stream.flush()
            os.fsync(stream.fileno())


def _copy(response: HTTPResponse, stream: IO[bytes], name: str, have: int, num_bytes: int) -> None:
    with _progress(name, have, num_bytes) as progress:
        task = progress.task_ids[0]
        # One byte more than published is enough to know that it is another file.
        while have <= num_bytes and (chunk := response.read1(CHUNK_BYTES)):
            stream.write(chunk)
            have += len(chunk)
            progress.update(task, completed=have)
    if response.length and have <= num_bytes:
        raise HTTPException(f"the connection was cut after {have} bytes; run it again to go on from there")


@contextmanager
def _progress(name: str, have: int, num_bytes: int) -> Iterator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        progress.add_task(name, completed=have, total=num_bytes)
        yield progress


def _accept(part: Path, path: Path, expected: Published, address: str) -> Path:
    found = sha256(part)
    if found != expected.sha256:
        num_bytes = part.stat().st_size
        part.unlink()
        raise ValueError(
            f"{address} sent {num_bytes} bytes with SHA-256 {found[:12]}…, not the published {path.name} "
            f"({expected.num_bytes} bytes, {expected.sha256[:12]}…); {_by_hand(path.name, path.parent)}"
        )
    part.replace(path)
    return path


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        with error:
            return f"the server answered {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        return f"no connection ({error.reason})"
    return " ".join(str(error).split()) or type(error).__name__


def _by_hand(name: str, folder: Path) -> str:
    return (
        f"by hand: clone https://github.com/raoulg/MADS-exam-25, run `git lfs pull` and copy data/{name} to {folder}, "
        f"or name the folder that has it with HEART_DATA_DIR or --data-dir"
    )
