"""Nobody computes a later scoring or report window from what is public."""

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from fedgpt2.config import Data, Run, ValidatorConfig
from fedgpt2.data import Corpus, Pool, key_digest
from fedgpt2.ledger.ledger import Admission
from fedgpt2.protocol.messages import Receipt, encode
from fedgpt2.types import Digest, Hotkey, WorkId
from fedgpt2.validator.run_directory import open_run_directory
from tests.records import round_record

ROUNDS, NEXT, WINDOWS = 6, 7, 4
HOTKEYS = [Hotkey(f"5miner{n}") for n in range(3)]


def hexed(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def admitted(round: int) -> list[Admission]:
    return [
        Admission(key, WorkId(hexed("work", round, key)), Digest(hexed("blob", round, key)), 128) for key in HOTKEYS
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, object]]:
    """A run of six rounds: its directory, its key, and every receipt it sent."""
    folder = tmp_path_factory.mktemp("run")
    config = ValidatorConfig(data=Data(source="sample"), run=Run(dir=str(folder)))
    corpus = Corpus.open(config.data, seq_len=128, seed=1337)
    receipts = []
    with open_run_directory(config, corpus.manifest) as directory:
        for number in range(1, ROUNDS + 1):
            admissions = admitted(number)
            directory.ledger.admit(number, 0, admissions)
            record = round_record(number, model=hexed("model", number), train_loss=5.0)
            directory.ledger.commit_round(record, sender=Hotkey("v"))
            head = directory.ledger.head
            receipts += [
                encode(
                    Receipt(
                        run_id=directory.run_id,
                        round=number,
                        sender="5validator",
                        receiver=admission.hotkey,
                        work_id=admission.work_id,
                        status="admitted",
                        applied=True,
                        model=hexed("model", number),
                        ledger_head=head,
                    )
                )
                for admission in admissions
            ]
        yield {"folder": folder, "key": directory.key, "corpus": corpus, "receipts": receipts}


def words(value: object) -> Iterator[str]:
    """Every string and number in JSON, keys included."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from (key, *words(inner))
    elif isinstance(value, list):
        for inner in value:
            yield from words(inner)
    else:
        yield str(value)


def public_words(run: dict[str, object]) -> set[str]:
    """All that a miner can know: config, manifest, receipts, and the ledger without the key file."""
    folder: Path = run["folder"]
    found: set[str] = set()
    for name in ("config.json", "manifest.json"):
        found.update(words(json.loads((folder / name).read_text())))
    for receipt in run["receipts"]:
        found.update(words(json.loads(receipt)))
    with contextlib.closing(sqlite3.connect(folder / "ledger.sqlite")) as database:
        for table in ("meta", "entries", "admissions", "slots", "axons", "outbox"):
            for row in database.execute(f"SELECT * FROM {table}"):  # noqa: S608
                found.update(str(cell) for cell in row)
                found.update(word for cell in row if str(cell).startswith("{") for word in words(json.loads(cell)))
    return found


def candidate_keys(public: set[str]) -> Iterator[bytes]:
    """What one would try as the key: each public word as it is, as the bytes its hex stands for, hashed, padded."""
    for word in {*public, "", "report"}:
        raw = word.encode()
        yield from (raw, hashlib.sha256(raw).digest(), hashlib.sha256(raw).hexdigest().encode(), raw.ljust(32, b"\0"))
        with contextlib.suppress(ValueError):
            yield bytes.fromhex(word)
            yield hashlib.sha256(bytes.fromhex(word)).digest()


def test_no_public_word_is_the_key_or_draws_its_windows(run: dict[str, object]):
    corpus, key = run["corpus"], run["key"]
    digests = [admission.digest for admission in admitted(NEXT)]  # even who knew what will be admitted
    score = corpus.score_picks(key, NEXT, digests, WINDOWS)
    report = corpus.score_picks(key, NEXT + 1, digests, WINDOWS)
    public = public_words(run)
    assert len(public) > 80
    tried = set(candidate_keys(public))
    assert len(tried) > 500
    assert key not in tried
    held = corpus.report(key, WINDOWS)
    for candidate in tried:
        assert corpus.score_picks(candidate, NEXT, digests, WINDOWS) not in (score, report)
    for candidate in list(tried)[:200]:
        assert not np.array_equal(corpus.report(candidate, WINDOWS), held)


def test_the_key_stands_only_in_its_own_file(run: dict[str, object]):
    folder, key = run["folder"], run["key"]
    holders = [path for path in folder.rglob("*") if path.is_file() and _holds(path, key)]
    assert [path.name for path in holders] == ["evaluation.key"]
    assert holders[0].stat().st_mode & 0o077 == 0
    assert json.loads((folder / "config.json").read_text())["evaluation_key_sha256"] == key_digest(key)


def _holds(path: Path, key: bytes) -> bool:
    raw = path.read_bytes()
    return key in raw or key.hex().encode() in raw.lower()


def test_windows_seen_tell_nothing_of_the_next(run: dict[str, object]):
    """Earlier windows, which receipts may show, are no better a guess than any others."""
    corpus, key = run["corpus"], run["key"]
    draws = [corpus.score_picks(key, r, [a.digest for a in admitted(r)], WINDOWS) for r in range(1, 400)]
    hits = sum(bool(set(a) & set(b)) for a, b in pairwise(draws))
    windows = sum((len(corpus.tokens(Pool.SCORE, page)) - 1) // 128 for page in range(26))
    expected = 398 * WINDOWS * WINDOWS / windows
    assert hits < expected + 6 * expected**0.5 + 3
