"""Dies by SIGKILL at the N-th system call with which a page is fetched and kept, for N = 1, 2, …

    python killed_writer.py FOLDER     says, a line each, what the next process then found: none or right

Every N gets a child process of its own. A write also dies half-way.
"""

import os
import signal
import sys
from pathlib import Path

from fedgpt2.data import Pool, SourceFile
from fedgpt2.data.store import Store
from fedgpt2.data.tokens import TokenCache

WATCHED = ("open", "write", "fsync", "replace", "unlink", "mkdir", "utime", "close")


class Source:
    """One page of text."""

    name = "killed"
    page_documents = 1
    page_tokens = 0
    credit = ""
    pools = dict.fromkeys(Pool, 1)

    def files(self) -> list[SourceFile]:
        return []

    def documents(self, pool: Pool, page: int) -> list[str]:
        return ["some text " * 2000]


def die_at(number: int) -> None:
    """Kill this process at the `number`-th watched call; a write has then put out half of its bytes."""
    left = [number]

    def watch(name, true):
        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0:
                if name == "write":
                    true(args[0], bytes(args[1])[: len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return true(*args, **kwargs)

        return call

    for name in WATCHED:
        setattr(os, name, watch(name, getattr(os, name)))


def child(folder: Path, number: int) -> int:
    """Exit status of a process that fetches the page and dies at call `number`, if it gets that far."""
    pid = os.fork()
    if pid == 0:
        die_at(number)
        TokenCache(Source(), store=Store.open(str(folder), 1.0)).get(Pool.ASSIGN, 0)
        os._exit(0)
    return os.waitpid(pid, 0)[1]


def main(folder: Path) -> None:
    right = TokenCache(Source()).get(Pool.ASSIGN, 0).tobytes()
    number = 0
    while True:
        number += 1
        place = folder / str(number)
        status = child(place, number)
        before = TokenCache(Source(), store=Store.open(str(place), 1.0))
        kept = before.store.get(before.kind, "assign-00000000.u16")
        tokens = before.get(Pool.ASSIGN, 0).tobytes()
        again = TokenCache(Source(), store=before.store)
        ok = kept in (None, right) and tokens == right and again.get(Pool.ASSIGN, 0).tobytes() == right
        found = "WRONG" if not ok else "none" if kept is None else "right"
        sys.stdout.write(f"{found} {again.fetched}\n")
        sys.stdout.flush()
        if status == 0:
            return
        assert os.WTERMSIG(status) == signal.SIGKILL


if __name__ == "__main__":
    main(Path(sys.argv[1]))
