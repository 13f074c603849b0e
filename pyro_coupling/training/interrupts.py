"""Ctrl-C, put off until a step is over."""

from __future__ import annotations

__all__ = ["PostponedInterrupt"]

import signal
import threading
from typing import Any


class PostponedInterrupt:
    """Notes a Ctrl-C inside a block instead of raising KeyboardInterrupt; the second one raises.

    It does so in the main thread, where Python handles signals, and unless the program has a handler of its own.

    Attributes:
        seen: Whether there was one.
    """

    def __init__(self) -> None:
        self.seen = False
        self._installed = False

    def __enter__(self) -> PostponedInterrupt:
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._note)
            self._installed = True
        return self

    def __exit__(self, *exception: object) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _note(self, number: int, frame: Any) -> None:
        if self.seen:
            raise KeyboardInterrupt
        self.seen = True
