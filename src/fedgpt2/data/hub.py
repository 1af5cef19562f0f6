"""The Hugging Face hub as this project needs it: one listing of a pinned commit, and exact ranges of its files.

Session, token, endpoint (`HF_ENDPOINT`) and offline switch (`HF_HUB_OFFLINE`) are those of huggingface_hub. What is
ours: every request has deadlines and bounded tries, asks for exactly the bytes wanted, goes on where a cut answer
ended, and is held against the size and hash of the listing.
"""

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from fedgpt2 import __version__
from fedgpt2.data.pages import SourceFile
from fedgpt2.data.retry import GaveUp, Passing, Patience
from fedgpt2.errors import CorpusError

if TYPE_CHECKING:
    import httpx2

__all__ = ["WAY_OUT", "Hub", "glob_folder"]

WAY_OUT = (
    "--data.source sample trains on the embedded corpus; fedgpt2 data prefetch fills the cache while there is a network"
)

T = TypeVar("T")

_COMMIT = re.compile(r"[0-9a-f]{40}")
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", re.ASCII)
_CONNECT_SECONDS = 5.0
_QUIET_SECONDS = 30.0  # the longest silence inside an answer
_SLOWEST = 4096  # bytes a second, over a whole answer
_PAGES = 1000  # of a listing, at most
_PAGE_BYTES = 16 << 20  # of one of them; the hub's have a thousand files and 0.4 MB
_OPENING_TRIES = 3  # before a run begins, somebody waits for the answer


@dataclass(frozen=True)
class Hub:
    """One dataset repository at one revision."""

    repo: str
    revision: str  # a commit or a branch
    patience: Patience = field(default_factory=Patience)

    def commit(self) -> str:
        """The revision as a commit; asks the hub only where it is a name. Raises CorpusError."""
        if _COMMIT.fullmatch(self.revision):
            return self.revision
        answer, _ = self._json(f"{_endpoint()}/api/datasets/{self.repo}/revision/{quote(self.revision, safe='')}")
        commit = answer.get("sha") if isinstance(answer, dict) else None
        if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
            raise CorpusError(f"{self.name}: the hub does not name the commit of {self.revision}; {WAY_OUT}")
        return commit

    @property
    def name(self) -> str:
        """As people write it."""
        return f"hf://datasets/{self.repo}@{self.revision}"

    def listing(self, pattern: str) -> list[SourceFile]:
        """The files of the commit whose path matches the glob, in path order. Raises CorpusError.

        `*` stays within a folder, `**` does not. Size and SHA-256 are those of the repository's LFS pointers.
        """
        parts = pattern.split("/")
        entries = self._tree(glob_folder(pattern))
        files = [_file(self.name, entry) for entry in entries if _matches(str(entry.get("path", "")).split("/"), parts)]
        if not files:
            raise CorpusError(f"{self.name}/{pattern}: the hub has no such file at this revision; {WAY_OUT}")
        return sorted(files)

    def read(self, file: SourceFile, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of a file. Raises CorpusError if the hub will not give them, or has another file."""
        url = f"{_endpoint()}/datasets/{self.repo}/resolve/{quote(self.revision, safe='')}/{quote(file.path)}"
        have = bytearray()

        def attempt() -> bytes:
            if len(have) < stop - start:  # else the last try ended badly behind its last byte
                self._stream(url, file, start + len(have), stop, have)
            return bytes(have)

        return _persist(self.patience, f"{self.name}/{file.path}", attempt)

    def _tree(self, folder: str) -> Iterator[Mapping[str, Any]]:
        path = f"/{quote(folder)}" if folder else ""
        url: str | None = f"{_endpoint()}/api/datasets/{self.repo}/tree/{quote(self.revision, safe='')}{path}"
        url = f"{url}?recursive=true&expand=false"
        for _ in range(_PAGES):
            entries, url = self._json(url)
            if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
                raise CorpusError(f"{self.name}: the hub's listing is none; {WAY_OUT}")
            yield from (entry for entry in entries if entry.get("type") == "file")
            if url is None:
                return
        raise CorpusError(f"{self.name}: the hub's listing has no end; {WAY_OUT}")

    def _json(self, url: str) -> tuple[Any, str | None]:
        """A JSON answer, and the address of its next page."""

        def attempt() -> tuple[Any, str | None]:
            with _transport_errors(), _session().stream("GET", url, headers=_headers(), timeout=_timeout()) as answer:
                _check_status(answer, expected=200)
                raw = _whole(answer)
                try:
                    return json.loads(raw), answer.links.get("next", {}).get("url")
                except (ValueError, RecursionError) as error:
                    raise Passing(f"not JSON: {error}") from error

        patience = replace(self.patience, tries=min(self.patience.tries, _OPENING_TRIES))
        return _persist(patience, self.name, attempt)

    def _stream(self, url: str, file: SourceFile, start: int, stop: int, have: bytearray) -> None:
        """Append bytes [start, stop) to `have`, as far as they come. Raises Passing where they stop too early."""
        deadline = time.monotonic() + _QUIET_SECONDS + (stop - start) / _SLOWEST
        headers = {**_headers(), "Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        with (
            _transport_errors(),
            _session().stream("GET", url, headers=headers, timeout=_timeout()) as answer,
        ):
            _check_status(answer, expected=206)
            _check_identity(answer, file, start, stop)
            for piece in answer.iter_raw():  # read to its end, for only then can the connection be used again
                if start == stop:
                    return  # more than it announced
                have += piece[: stop - start]
                start = min(start + len(piece), stop)
                if start < stop and time.monotonic() > deadline:
                    raise Passing(f"slower than {_SLOWEST} bytes a second")
        if start < stop:
            raise Passing(f"the answer ended {stop - start} bytes early")


class _Refusal(Exception):
    """An answer that another try will not change."""


def glob_folder(pattern: str) -> str:
    """The folders before the first wildcard of a glob, without a slash at the end."""
    parts = pattern.split("/")[:-1]
    fixed = []
    for part in parts:
        if any(sign in part for sign in "*?["):
            break
        fixed.append(part)
    return "/".join(fixed)


def _persist(patience: Patience, what: str, attempt: Callable[[], T]) -> T:
    try:
        return patience.persist(attempt)
    except (GaveUp, _Refusal) as error:
        raise CorpusError(f"{what}: cannot be read: {error}; {WAY_OUT}") from error


def _matches(path: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether the parts of a path match those of a glob: `**` stands for any number of folders, also for none."""
    if not pattern:
        return not path
    if pattern[0] == "**":
        return any(_matches(path[skipped:], pattern[1:]) for skipped in range(len(path) + 1))
    return bool(path) and fnmatchcase(path[0], pattern[0]) and _matches(path[1:], pattern[1:])


def _file(name: str, entry: Mapping[str, Any]) -> SourceFile:
    """A file of the listing. Raises CorpusError for one without LFS hash: its bytes could be any."""
    path, lfs = str(entry.get("path")), entry.get("lfs")
    size, sha256 = (lfs.get("size"), lfs.get("oid")) if isinstance(lfs, dict) else (None, None)
    if not isinstance(size, int) or not isinstance(sha256, str) or not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise CorpusError(f"{name}/{path}: the hub's listing has no size and SHA-256 of it; {WAY_OUT}")
    return SourceFile(path, size, sha256)


def _endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


def _session() -> "httpx2.Client":
    from huggingface_hub.utils import get_session

    return get_session()


def _headers() -> dict[str, str]:
    from huggingface_hub import get_token

    token = get_token()
    return {"User-Agent": f"fedgpt2/{__version__}", **({"Authorization": f"Bearer {token}"} if token else {})}


def _timeout() -> "httpx2.Timeout":
    import httpx2

    return httpx2.Timeout(_QUIET_SECONDS, connect=_CONNECT_SECONDS)


@contextmanager
def _transport_errors() -> Iterator[None]:
    """Failures of the link as Passing, those of the settings as _Refusal."""
    import httpx2
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        yield
    except httpx2.TransportError as error:
        raise Passing(str(error) or type(error).__name__) from error
    except OfflineModeIsEnabled as error:
        raise _Refusal("HF_HUB_OFFLINE is set") from error
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise _Refusal(str(error)) from error


def _whole(answer: "httpx2.Response") -> bytes:
    """A body whose length nobody knows before. Raises Passing for one too slow, _Refusal for one too long."""
    began, body = time.monotonic(), bytearray()
    for piece in answer.iter_bytes():
        body += piece
        if len(body) > _PAGE_BYTES:
            raise _Refusal(f"an answer of more than {_PAGE_BYTES} bytes")
        if time.monotonic() - began > _QUIET_SECONDS + len(body) / _SLOWEST:
            raise Passing(f"slower than {_SLOWEST} bytes a second")
    return bytes(body)


def _check_status(answer: "httpx2.Response", expected: int) -> None:
    """Raise Passing for a status that may pass, _Refusal for one that will not."""
    status = answer.status_code
    if status == expected:
        return
    if status == 429:
        raise Passing("the hub limits the rate of requests (429)", _asked_wait(answer.headers))
    if status == 408 or 500 <= status < 600:
        raise Passing(f"the hub answers {status}", _asked_wait(answer.headers))
    if status in (401, 403):
        raise _Refusal(f"the hub does not allow it ({status}); HF_TOKEN may help")
    raise _Refusal(f"the hub answers {status}, not {expected}")


def _asked_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds the server asks to wait: `Retry-After`, else the reset of `RateLimit`; a second more, as they round."""
    from huggingface_hub.utils import parse_ratelimit_headers

    asked = headers.get("Retry-After", "").strip()
    if asked.isascii() and asked.isdecimal():
        return float(asked) + 1
    limit = parse_ratelimit_headers(headers)
    return None if limit is None else limit.reset_in_seconds + 1.0


def _check_identity(answer: "httpx2.Response", file: SourceFile, start: int, stop: int) -> None:
    """Raise _Refusal unless the answer is bytes [start, stop), or the first of them, of the file listed."""
    found = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    if found is None or int(found[1]) != start or not start <= int(found[2]) < stop:
        raise _Refusal("the hub does not answer ranges")
    sizes = [found[3], *(hop.headers.get("X-Linked-Size", "") for hop in (*answer.history, answer))]
    if wrong := [size for size in sizes if size and size != str(file.size)]:
        raise _Refusal(f"it has {wrong[0]} bytes, {file.size} in the listing")
    for hop in (*answer.history, answer):
        etag = hop.headers.get("X-Linked-ETag", "").strip('"')
        if re.fullmatch(r"[0-9a-f]{64}", etag) and etag != file.sha256:
            raise _Refusal(f"its SHA-256 is {etag[:16]}…, {file.sha256[:16]}… in the listing")
