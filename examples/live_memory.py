"""Counts the memory of tensors that live while something runs, on any device."""

from __future__ import annotations

__all__ = ["LiveMemory", "peak_megabytes"]

import weakref
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of tensors that operations make, while they live; ``peak`` is the most at a time."""

    def __init__(self, ignore: Iterable[Tensor]) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in ignore}

    def __torch_dispatch__(self, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def peak_megabytes(step: Callable[[], object], ignore: Iterable[Tensor]) -> float:
    """The most that lived at a time while ``step`` ran, of all tensors but those to ignore."""
    with LiveMemory(ignore) as memory:
        step()
    return memory.peak / 1e6
