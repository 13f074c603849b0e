"""Runs a function in several processes that form a process group, as torchrun would."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import queue
import socket
from collections.abc import Callable
from typing import Any

import torch


def run_on_ranks(function: Callable, size: int, *args: Any) -> list[Any]:
    """What ``function(rank, *args)`` returns on each rank; None from one that died."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=_run, args=(r, size, port, results, function, args)) for r in range(size)]
    for process in processes:
        process.start()
    found: dict[int, Any] = {}
    while any(process.is_alive() for process in processes) or not results.empty():
        try:
            rank, value = results.get(timeout=0.1)
        except queue.Empty:
            continue
        found[rank] = pickle.loads(value)
    return [found.get(rank) for rank in range(size)]


def _run(rank: int, size: int, port: int, results: Any, function: Callable, args: tuple) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    try:
        value = function(rank, *args)
    except Exception as error:
        value = error
    results.put((rank, pickle.dumps(value)))  # as bytes: torch would share the memory of a process that ends
