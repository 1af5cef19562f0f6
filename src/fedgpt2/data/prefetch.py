"""Reading ahead: pages that will soon be asked for are fetched while something else is computed.

It only ever fills the cache. What fails here fails again, with its one line, where the page is really needed.
"""

import threading
from collections import deque
from collections.abc import Callable, Hashable

from fedgpt2.errors import CorpusError, Refused, UsageError

__all__ = ["Prefetcher"]

_WORKERS = 4  # requests in flight; the hub allows hundreds a minute
_MOST_WAITING = 4096


class Prefetcher:
    """Daemon threads that run small jobs in order of arrival, those marked urgent first; each key once at a time.

    A thread ends when there is nothing left to do, and never holds up the exit of the process.
    """

    def __init__(self, workers: int = _WORKERS) -> None:
        self._workers = workers
        self._running = 0
        self._urgent: deque[tuple[Hashable, Callable[[], object]]] = deque()
        self._waiting: deque[tuple[Hashable, Callable[[], object]]] = deque()
        self._keys: set[Hashable] = set()
        self._changed = threading.Condition()
        self._closed = False

    def submit(self, key: Hashable, job: Callable[[], object], *, urgent: bool = True) -> None:
        """Run `job` soon, unless one of the same key is waiting or running, or far too many wait."""
        with self._changed:
            if self._closed or key in self._keys or len(self._keys) >= _MOST_WAITING:
                return
            self._keys.add(key)
            (self._urgent if urgent else self._waiting).append((key, job))
            if self._running < self._workers:
                self._running += 1
                threading.Thread(target=self._work, name="prefetch", daemon=True).start()

    def wait(self, timeout: float) -> bool:
        """Wait until nothing is left to do; False if that takes longer than `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._keys, timeout)

    def close(self, timeout: float = 2.0) -> None:
        """Take no more, forget what waits, and give what runs a moment to end."""
        with self._changed:
            self._closed = True
            for key, _ in (*self._urgent, *self._waiting):
                self._keys.discard(key)
            self._urgent.clear()
            self._waiting.clear()
            self._changed.wait_for(lambda: not self._keys, timeout)

    def _work(self) -> None:
        while (taken := self._take()) is not None:
            key, job = taken
            try:
                job()
            except (CorpusError, Refused, UsageError):
                pass  # met again, and told, by whoever needs the page
            except BaseException:
                self._end()
                raise
            finally:
                self._forget(key)

    def _take(self) -> tuple[Hashable, Callable[[], object]] | None:
        with self._changed:
            for queue in (self._urgent, self._waiting):
                if queue:
                    return queue.popleft()
            self._running -= 1
            return None

    def _end(self) -> None:
        with self._changed:
            self._running -= 1

    def _forget(self, key: Hashable) -> None:
        with self._changed:
            self._keys.discard(key)
            self._changed.notify_all()
