"""How gently an archive is asked: a token bucket, pauses that grow, and a stop that all workers hear."""

from __future__ import annotations

import logging
import random
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from medtransfer.errors import PacsError, PacsUnavailable

T = TypeVar("T")
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
_LOGGERS = ("dicomweb_client", "urllib3", "pynetdicom", "pydicom")


class Damaged(PacsError):
    """What arrived is not whole, or not what was asked for; another attempt may bring it."""


class Busy(PacsUnavailable):
    """The archive asks for a pause."""

    retry_after_s = 0.0


class Missing(PacsError):
    """The archive named an instance and does not give it."""


class Stopped(PacsError):
    """Another worker, or the user, ended the whole."""


class Pace:
    """Shared by all workers of one call: how many bytes may pass, and whether to go on.

    A token bucket: over any stretch of ``t`` seconds at most ``rate * (t + burst_s)`` bytes pass, plus one piece.

    Parameters
    ----------
    bytes_per_s : float or None
        None for no limit.
    clock : callable
        Seconds that only grow.

    Examples
    --------
    >>> pace = Pace(None)
    >>> pace.take(10**9)
    0.0
    """

    burst_s = 0.25

    def __init__(self, bytes_per_s: float | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = bytes_per_s
        self._clock = clock
        self._lock = threading.Lock()
        self._tokens = self.burst_s * (bytes_per_s or 0)
        self._last = clock()
        self._stop = threading.Event()

    def take(self, count: int) -> float:
        """Wait until ``count`` bytes may pass; the seconds it waited.

        Raises
        ------
        Stopped
            Where the whole was ended meanwhile.
        """
        if self._rate is None:
            self.check()
            return 0.0
        with self._lock:
            now = self._clock()
            self._tokens = min(self.burst_s * self._rate, self._tokens + (now - self._last) * self._rate) - count
            self._last = now
            wait = max(0.0, -self._tokens / self._rate)
        self.rest(wait)
        return wait

    def rest(self, seconds: float) -> None:
        """Wait, unless the whole is ended."""
        if self._stop.wait(seconds):
            self.check()

    def stop(self) -> None:
        """End the whole: every worker that waits or transfers raises :class:`Stopped`."""
        self._stop.set()

    def check(self) -> None:
        """Raise where the whole was ended."""
        if self._stop.is_set():
            raise Stopped("stopped")

    def patiently(self, call: Callable[[], T], *, attempts: int) -> T:
        """The result of a call that may fail in passing; pauses double and vary, and heed what the archive asks.

        Raises
        ------
        PacsError
            That of the last attempt; errors other than :class:`PacsUnavailable` and :class:`Damaged` at once.
        """
        for attempt in range(1, attempts + 1):
            self.check()
            try:
                return call()
            except (PacsUnavailable, Damaged) as error:
                if attempt == attempts:
                    raise
                pause = FIRST_PAUSE_S * 2 ** (attempt - 1) * random.uniform(0.5, 1)
                asked = error.retry_after_s if isinstance(error, Busy) else 0.0
            self.rest(min(LONGEST_PAUSE_S, max(pause, asked)))
        raise AssertionError("attempts is above 0")


@contextmanager
def hushed() -> Iterator[None]:
    """Without the log lines and warnings of the libraries below, which quote identifiers."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [(logger.propagate, logger.handlers[:]) for logger in loggers]
    try:
        for logger in loggers:
            logger.propagate, logger.handlers = False, [logging.NullHandler()]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, (propagate, handlers) in zip(loggers, before, strict=True):
            logger.propagate, logger.handlers = propagate, handlers
