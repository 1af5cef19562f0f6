"""The hub client against a loopback hub: what it asks for, and how each way to fail ends."""

import hashlib
import time
from contextlib import suppress
from itertools import count
from types import SimpleNamespace

import pytest

from fedgpt2.data.hub import WAY_OUT, Hub, glob_folder
from fedgpt2.data.pages import SourceFile
from fedgpt2.data.retry import Patience
from fedgpt2.errors import CorpusError

from .hub import Fault, LoopbackHub, _Handler

COMMIT = "c" * 40
BODY = bytes(range(256)) * 400
NAME = "data/train-00003.parquet"
FILES = {f"data/train-{n:05d}.parquet": bytes([n]) * (100 + n) for n in range(13)} | {
    NAME: BODY,
    "data/deep/er/x.parquet": b"deep",
    "data/notes.txt": b"notes",
    "top.parquet": b"top",
}
FILE = SourceFile(NAME, len(BODY), hashlib.sha256(BODY).hexdigest())


@pytest.fixture
def waits() -> list[float]:
    """Seconds slept between tries; nothing really sleeps."""
    return []


@pytest.fixture
def hub(serve) -> LoopbackHub:
    return serve(LoopbackHub("owner/name", COMMIT, dict(FILES)))


@pytest.fixture
def client(hub: LoopbackHub, waits: list[float]) -> Hub:
    return Hub("owner/name", COMMIT, Patience(sleep=waits.append))


def test_a_commit_is_not_asked_for(client: Hub, hub: LoopbackHub):
    assert client.commit() == COMMIT
    assert hub.requests == []


def test_a_name_becomes_a_commit(hub: LoopbackHub):
    assert Hub("owner/name", "main").commit() == COMMIT


def test_a_listing_has_sizes_and_hashes_in_path_order(client: Hub, hub: LoopbackHub):
    files = client.listing("data/*.parquet")
    assert [file.path for file in files] == [f"data/train-{n:05d}.parquet" for n in range(13)]
    assert files[3] == FILE
    assert all(file.sha256 == hashlib.sha256(FILES[file.path]).hexdigest() for file in files)
    assert len(hub.requests) == 3  # 15 files below data/, five at once
    assert all(path.endswith(f"/tree/{COMMIT}/data") for path, _, _ in hub.requests)


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.parquet", ["top.parquet"]),
        ("data/**/*.parquet", 14),
        ("**/x.parquet", ["data/deep/er/x.parquet"]),
        ("data/train-0000[12].parquet", ["data/train-00001.parquet", "data/train-00002.parquet"]),
        ("data/train-0000?.parquet", 10),
        ("data/train-0000[!0-7].parquet", ["data/train-00008.parquet", "data/train-00009.parquet"]),
        ("data/**", 15),
        ("data/**/**/x.parquet", ["data/deep/er/x.parquet"]),
        ("top.parquet", ["top.parquet"]),
    ],
)
def test_globs(client: Hub, pattern: str, found):
    paths = [file.path for file in client.listing(pattern)]
    assert len(paths) == found if isinstance(found, int) else paths == found


@pytest.mark.parametrize("pattern", ["data/train-0000[9-0].parquet", "data[/]notes.txt", "data/[.parquet"])
def test_globs_that_name_nothing(client: Hub, pattern: str):
    with pytest.raises(CorpusError, match="the hub has no such file"):
        client.listing(pattern)


def test_the_folder_of_a_glob():
    patterns = ["a/b/*.x", "a/*/c.x", "**/x", "a/b/c", "c"]
    assert [glob_folder(pattern) for pattern in patterns] == ["a/b", "a", "", "a/b", ""]


def test_no_such_file_is_named(client: Hub):
    with pytest.raises(CorpusError, match=r"data/\*\.csv: the hub has no such file"):
        client.listing("data/*.csv")


def test_a_file_without_lfs_hash_is_refused(client: Hub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Hub, "_tree", lambda *_: iter([{"type": "file", "path": NAME, "size": 3, "oid": "1" * 40}]))
    with pytest.raises(CorpusError, match="no size and SHA-256"):
        client.listing("data/*.parquet")


def test_exactly_the_range_travels(client: Hub, hub: LoopbackHub):
    assert client.read(FILE, 1000, 51_000) == BODY[1000:51_000]
    assert hub.sent == 50_000
    assert len(hub.requests) == 2  # the repository's answer, and the storage it points to
    assert hub.ranges() == [(NAME, 1000, 51_000)]


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Fault("/resolve/", 429, {"Retry-After": "7"}), [8.0]),
        (Fault("/resolve/", 429, {"RateLimit": '"resolvers";r=0;t=41'}), [42.0]),
        (Fault("/resolve/", 429), [0.5]),
        (Fault("/storage/", 503, {"Retry-After": "3"}), [4.0]),
        (Fault("/storage/", 500, times=3), [0.5, 1.0, 2.0]),
        (Fault("/storage/", 408), [0.5]),
        (Fault("/storage/", keep=0.5), [0.5]),
        (Fault("/storage/", keep=0.9, times=4), [0.5, 1.0, 2.0, 4.0]),
    ],
)
def test_what_passes_is_tried_again_after_the_wait_asked_for(
    client: Hub, hub: LoopbackHub, waits: list[float], fault: Fault, expected: list[float]
):
    hub.faults.append(fault)
    assert client.read(FILE, 0, 80_000) == BODY[:80_000]
    assert waits == expected
    assert hub.faults == []


def test_a_cut_answer_goes_on_where_it_ended(client: Hub, hub: LoopbackHub):
    hub.faults += [Fault("/storage/", keep=0.5), Fault("/storage/", keep=0.5)]
    assert client.read(FILE, 100, 80_100) == BODY[100:80_100]
    assert [start for _, start, _ in hub.ranges()] == [100, 40_100, 60_100]
    assert hub.sent == 80_000


@pytest.mark.parametrize("more", [1, 80_000])
def test_what_comes_after_the_range_is_not_taken(client: Hub, hub: LoopbackHub, waits: list[float], more: int):
    hub.faults.append(Fault("/storage/", more=more))
    assert client.read(FILE, 100, 20_100) == BODY[100:20_100]
    assert waits == []


def test_a_mirror_that_ignores_the_end_is_refused(client: Hub, hub: LoopbackHub, waits: list[float]):
    hub.faults.append(Fault("/storage/", headers={"Content-Range": "bytes 100-102399/102400"}, more=len(BODY)))
    with pytest.raises(CorpusError, match="does not answer ranges"):
        client.read(FILE, 100, 20_100)
    assert waits == []


def test_all_that_was_asked_for_is_enough_however_the_answer_ends(client: Hub, hub: LoopbackHub, waits: list[float]):
    hub.faults.append(Fault("/storage/", more=20_000, keep=0.5))  # the link breaks behind the last byte
    assert client.read(FILE, 100, 20_100) == BODY[100:20_100]
    assert hub.ranges() == [(NAME, 100, 20_100)]


def test_a_last_piece_after_the_deadline_is_no_reason_to_ask_again(
    client: Hub, hub: LoopbackHub, waits: list[float], monkeypatch: pytest.MonkeyPatch
):
    clock = iter([0.0])
    monkeypatch.setattr("fedgpt2.data.hub.time", SimpleNamespace(monotonic=lambda: next(clock, 1e9)))
    assert client.read(FILE, 7, 8) == BODY[7:8]
    assert hub.ranges() == [(NAME, 7, 8)]
    assert waits == []


def test_ranges_of_a_file_share_a_connection(client: Hub, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch):
    ports, answer = set(), _Handler.do_GET
    monkeypatch.setattr(_Handler, "do_GET", lambda handler: (ports.add(handler.client_address), answer(handler))[1])
    for start in range(0, 50_000, 10_000):
        assert client.read(FILE, start, start + 10_000) == BODY[start : start + 10_000]
    assert len(ports) == 1


def test_tries_are_bounded(client: Hub, hub: LoopbackHub, waits: list[float]):
    hub.faults.append(Fault("/resolve/", 503, times=100))
    with pytest.raises(CorpusError) as caught:
        client.read(FILE, 0, 10)
    said = str(caught.value)
    assert said.endswith(f"{NAME}: cannot be read: the hub answers 503 (6 tries); {WAY_OUT}")
    assert "\n" not in said
    assert "--data.source sample" in said
    assert "fedgpt2 data prefetch" in said
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0]
    assert len(hub.requests) == 6


def test_who_opens_a_corpus_waits_for_three_tries(client: Hub, hub: LoopbackHub, waits: list[float]):
    hub.faults.append(Fault("/api/", 503, times=100))
    with pytest.raises(CorpusError, match=r"503 \(3 tries\)"):
        client.listing("data/*.parquet")
    assert len(hub.requests) == 3


def test_a_wait_beyond_reason_is_not_waited(client: Hub, hub: LoopbackHub, waits: list[float]):
    hub.faults.append(Fault("/resolve/", 429, {"Retry-After": "86400"}))
    with pytest.raises(CorpusError, match=r"429\); it asks to wait 86401 s"):
        client.read(FILE, 0, 10)
    assert waits == []


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault("/resolve/", 401), r"does not allow it \(401\); HF_TOKEN may help"),
        (Fault("/resolve/", 403), r"\(403\)"),
        (Fault("/resolve/", 404), "answers 404"),
        (Fault("/storage/", 416), "answers 416"),
        (Fault("/resolve/", headers={"X-Linked-Size": "5"}), "it has 5 bytes, 102400 in the listing"),
        (Fault("/resolve/", headers={"X-Linked-ETag": f'"{"e" * 64}"'}), "its SHA-256 is eeeeeeeeeeeeeeee…, "),
        (Fault("/storage/", headers={"Content-Range": "bytes 0-9/99"}), "it has 99 bytes, 102400 in the listing"),
        (Fault("/storage/", headers={"Content-Range": "bytes 5-14/102400"}), "does not answer ranges"),
        (Fault("/storage/", headers={"Content-Range": f"bytes {'0' * 5000}-9/102400"}), "does not answer ranges"),
        (Fault("/storage/", 200), "answers 200, not 206"),
    ],
)
def test_what_does_not_pass_ends_at_once(client: Hub, hub: LoopbackHub, waits: list[float], fault: Fault, said: str):
    hub.faults.append(fault)
    with pytest.raises(CorpusError, match=said) as caught:
        client.read(FILE, 0, 10)
    assert "--data.source sample" in str(caught.value)
    assert waits == []


@pytest.mark.parametrize("body", [b"not json", b'{"error": "x"}', b'["x"]'])
def test_a_listing_that_is_none(client: Hub, hub: LoopbackHub, body: bytes, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tests.data.hub._Handler._tree", lambda handler, *_: handler._answer(200, body))
    with pytest.raises(CorpusError, match=r"not JSON|listing is none"):
        client.listing("data/*.parquet")


def endless(handler: _Handler, piece: bytes, seconds: float) -> None:
    """A body without a length, until the client hangs up or nobody has for ten seconds."""
    handler.send_response(200)
    handler.send_header("Connection", "close")
    handler.end_headers()
    began = time.monotonic()
    with suppress(OSError):
        while time.monotonic() < began + 10:
            handler.wfile.write(piece)
            time.sleep(seconds)
    handler.close_connection = True


@pytest.mark.parametrize(
    ("piece", "seconds", "said"),
    [(b" ", 0.001, r"slower than 4096 bytes a second \(3 tries\)"), (bytes(1 << 16), 0.0, "more than 1000000 bytes")],
)
def test_a_listing_without_end_ends(
    client: Hub, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, piece: bytes, seconds: float, said: str
):
    clock = count()  # a second passes between two pieces
    monkeypatch.setattr("fedgpt2.data.hub.time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr("fedgpt2.data.hub._PAGE_BYTES", 1_000_000)
    monkeypatch.setattr("tests.data.hub._Handler._tree", lambda handler, *_: endless(handler, piece, seconds))
    with pytest.raises(CorpusError, match=said):
        client.listing("data/*.parquet")


def test_a_branch_without_commit(client: Hub, hub: LoopbackHub):
    hub.commit = "not a commit"
    with pytest.raises(CorpusError, match="does not name the commit of main"):
        Hub("owner/name", "main").commit()


def test_a_slow_link_is_slow_and_works(client: Hub, hub: LoopbackHub, waits: list[float]):
    hub.bytes_per_second = 200_000
    start = time.monotonic()
    assert client.read(FILE, 0, 60_000) == BODY[:60_000]
    assert time.monotonic() - start > 0.2
    assert waits == []


def test_a_silent_link_is_tried_again(client: Hub, hub: LoopbackHub, waits: list[float], monkeypatch):
    monkeypatch.setattr("fedgpt2.data.hub._QUIET_SECONDS", 0.2)
    hub.faults.append(Fault("/storage/", stall=0.6))
    assert client.read(FILE, 0, 60_000) == BODY[:60_000]
    assert waits == [0.5]


def test_a_link_that_only_trickles_is_given_up(client: Hub, hub: LoopbackHub, monkeypatch):
    monkeypatch.setattr("fedgpt2.data.hub._QUIET_SECONDS", 0.3)
    monkeypatch.setattr("fedgpt2.data.hub._SLOWEST", 10_000_000)
    hub.bytes_per_second = 100_000
    with pytest.raises(CorpusError, match="slower than 10000000 bytes a second"):
        Hub("owner/name", COMMIT, Patience(tries=2, sleep=lambda _: None)).read(FILE, 0, 100_000)


def test_no_network(client: Hub, waits: list[float], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(CorpusError, match=r"Connection refused.*--data\.source sample") as caught:
        client.listing("data/*.parquet")
    assert "fedgpt2 data prefetch" in str(caught.value)
    assert waits == [0.5, 1.0]


def test_offline_mode_is_named(client: Hub, waits: list[float], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CorpusError, match="HF_HUB_OFFLINE is set"):
        client.listing("data/*.parquet")
    assert waits == []


def test_an_endpoint_that_is_no_address(client: Hub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://[::1")
    with pytest.raises(CorpusError, match=r"--data\.source sample"):
        client.listing("data/*.parquet")


def test_a_token_is_shown_to_the_hub(client: Hub, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch):
    seen = []
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(
        "tests.data.hub._Handler._resolve",
        lambda handler, *_: (seen.append(handler.headers["Authorization"]), handler._answer(404, b""))[1],
    )
    with pytest.raises(CorpusError, match="404"):
        client.read(FILE, 0, 10)
    assert seen == ["Bearer hf_secret"]
