"""Files that are either whole or absent: atomic writing, SHA-256, sealed content.

Imports the standard library only, and is the one module that every room may import.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def atomic(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file beside `path`; it takes `path`'s name only when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, content: bytes) -> None:
    with atomic(path) as stream:
        stream.write(content)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON. NaN and infinities are refused: they are not JSON."""
    write_bytes(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def sha256(path: Path) -> str:
    """SHA-256 of the file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


SEAL_LENGTH = len("sha256:") + 64


def write_sealed(path: Path, content: bytes) -> None:
    """Write `content` followed by its SHA-256, so that `read_sealed` notices any bit that has changed."""
    write_bytes(path, content + _seal(content))


def read_sealed(path: Path) -> bytes:
    """The content of a sealed file.

    Raises:
        ValueError: no such file, a folder, or content that differs from its seal.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder, not a file")
    if not path.exists():
        raise ValueError(f"{path} does not exist")
    whole = path.read_bytes()
    content, seal = whole[:-SEAL_LENGTH], whole[-SEAL_LENGTH:]
    if not seal.startswith(b"sha256:"):
        raise ValueError(f"{path} does not end in a SHA-256: truncated, damaged, or not written by this toolkit")
    if seal != _seal(content):
        raise ValueError(f"{path} is damaged: its content differs from its SHA-256")
    return content


def _seal(content: bytes) -> bytes:
    return b"sha256:" + hashlib.sha256(content).hexdigest().encode()
