"""Reading and writing safetensors files: in one stroke, checked, and never executing what they hold."""

from __future__ import annotations

__all__ = [
    "pack_safetensors",
    "read_safetensors",
    "remove_leftovers",
    "unpack_safetensors",
    "write_in_one_stroke",
    "write_safetensors",
]

import contextlib
import json
import os
import re
import uuid
from pathlib import Path
from typing import BinaryIO

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

try:
    import fcntl
except ImportError:  # Windows, which refuses by itself to remove a file that is open
    fcntl = None  # type: ignore[assignment]


def write_safetensors(path: str | os.PathLike[str], tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes tensors and strings; the file appears complete or not at all.

    Args:
        path: Where to.
        tensors: Name to tensor.
        metadata: Strings, among them ``format`` and ``version``.
    """
    write_in_one_stroke(path, pack_safetensors(tensors, metadata))


def read_safetensors(
    path: str | os.PathLike[str], expected_format: str, newest_version: int
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads what `write_safetensors` wrote.

    Args:
        path: The file.
        expected_format: What its ``format`` has to be.
        newest_version: Largest ``version`` that is understood.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, of another format, or of a newer version.
    """
    name = os.fspath(path)
    if not os.path.exists(path):
        raise FileNotFoundError(f"no such file: {name!r}")
    if os.path.isdir(path):
        raise ValueError(f"{name!r} is a folder")
    return unpack_safetensors(Path(path).read_bytes(), name, expected_format, newest_version)


def pack_safetensors(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """What `write_safetensors` writes."""
    return save({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, metadata)


def unpack_safetensors(
    content: bytes, name: str, expected_format: str, newest_version: int
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads the content of a file, with the errors of `read_safetensors`; ``name`` is what they call it."""
    try:
        tensors = dict(sorted(load(content).items()))
    except SafetensorError as error:
        raise ValueError(f"{name!r} is damaged or no safetensors file: {error}") from error
    length = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + length]).get("__metadata__") or {}
    if metadata.get("format") != expected_format:
        raise ValueError(f"{name!r} has the format {metadata.get('format')!r}, expected {expected_format!r}")
    version = metadata.get("version", "")
    if not re.fullmatch("[0-9]{1,9}", version) or int(version) > newest_version:
        raise ValueError(
            f"{name!r} has version {version!r}, newer than {newest_version}: update pyro-coupling to read it"
        )
    return tensors, metadata


def write_in_one_stroke(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes a file beside its place and moves it there, so that the old file stays until the new one is on the disk.

    Args:
        path: Where to.
        content: All of it.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # not a `tempfile`, which only its owner may read
    try:
        with open(partial, "xb") as file:
            with contextlib.suppress(OSError):  # a file system without locks, where leftovers stay
                _lock(file)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def remove_leftovers(path: str | os.PathLike[str]) -> None:
    """Removes the partial files of processes that were killed as they wrote a file, and of no others.

    Args:
        path: The file they wrote.
    """
    path = Path(path)
    for partial in path.parent.iterdir():
        if re.fullmatch(rf"\.{re.escape(path.name)}\.[0-9a-f]{{32}}", partial.name):
            # locked means that it is being written; gone, or not ours to remove, is as good
            with contextlib.suppress(OSError):
                with open(partial, "rb+") as file:
                    _lock(file)
                partial.unlink()


def _lock(file: BinaryIO) -> None:
    """Marks a file as being written until it is closed, or raises BlockingIOError if it is so already."""
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _sync_folder(folder: Path) -> None:
    """Puts the new name on the disk too; where a system can't sync a folder, its own order has to do."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
