"""Reading and writing safetensors files: in one stroke, checked, and never executing what they hold."""

from __future__ import annotations

__all__ = ["read_safetensors", "write_safetensors"]

import os
import re
import uuid
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor


def write_safetensors(path: str | os.PathLike[str], tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes tensors and strings; the file appears complete or not at all.

    Args:
        path: Where to.
        tensors: Name to tensor.
        metadata: Strings, among them ``format`` and ``version``.
    """
    path = Path(path)
    content = save({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, metadata)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # not a `tempfile`, which only its owner may read
    try:
        with open(partial, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


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
    try:
        with safe_open(name, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, no mapping
    except SafetensorError as error:
        raise ValueError(f"{name!r} is damaged or no safetensors file: {error}") from error
    if metadata.get("format") != expected_format:
        raise ValueError(f"{name!r} has the format {metadata.get('format')!r}, expected {expected_format!r}")
    version = metadata.get("version", "")
    if not re.fullmatch("[0-9]{1,9}", version) or int(version) > newest_version:
        raise ValueError(
            f"{name!r} has version {version!r}, newer than {newest_version}: update pyro-coupling to read it"
        )
    return tensors, metadata
