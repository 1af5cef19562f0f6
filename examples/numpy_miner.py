"""A whole miner in numpy, written from docs/protocol.md and docs/data.md: no fedgpt2, no torch.

    pip install -r examples/requirements.txt
    python examples/numpy_miner.py --port 8095 --assets src/fedgpt2/data/assets --hotkey-file HOTKEY

It trains on the embedded corpus (`--data.source sample` at the validator) in codec fp32. HOTKEY is an unencrypted
Bittensor hotkey file; without it the miner takes a fresh key. Signatures are by py-sr25519-bindings (schnorrkel).
"""

import argparse
import hashlib
import json
import math
import re
import secrets
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import sr25519
from blake3 import blake3

from numpy_gpt2 import GPT2, Tensors
from numpy_text import Refusal, Text, canonical, require

Json = dict[str, Any]
MIB = 1 << 20
MALFORMED = (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, RecursionError)  # a bad message, read
FIELDS = {
    "order": "v run_id round attempt sender receiver parent model state assignment strategy answer_codecs caps "
    "budget_seconds",
    "receipt": "v run_id round sender receiver work_id status reason culprit detail tokens norm weight score rating "
    "applied model ledger_head",
}


class Key:
    """A hotkey."""

    BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"

    def __init__(self, seed: bytes) -> None:
        self._pair = sr25519.pair_from_seed(seed)
        self.address = self.to_address(self._pair[0])

    def seal(self, kind: str, message: Json) -> Json:
        payload = canonical(message)
        signature = sr25519.sign(self._pair, f"fedgpt2/1/{kind}\n".encode() + payload).hex()
        return {"kind": kind, "payload": payload.decode(), "signer": self.address, "signature": signature}

    @classmethod
    def open(cls, envelope: Json, kind: str, caller: str) -> Json:
        require(envelope.keys() == {"kind", "payload", "signer", "signature"}, "bad_message", "not an envelope")
        require(envelope["kind"] == kind, "bad_message", f"not an envelope of the {kind}")
        require(envelope["signer"] == caller, "bad_signature", "signed by another key than the request")
        cls.verify(caller, f"fedgpt2/1/{kind}\n{envelope['payload']}".encode(), envelope["signature"])
        message = dict(json.loads(envelope["payload"]))
        require(message.get("v", 1) == 1, "unsupported_version")
        require(message.keys() <= set(FIELDS[kind].split()), "bad_message", f"unknown fields in the {kind}")
        require(message["sender"] == caller, "bad_signature", "names another sender than its signer")
        return message

    @classmethod
    def verify(cls, address: str, message: bytes, signature: str) -> None:
        number = 0
        for character in address[:50]:
            number = number * 58 + cls.BASE58.find(character) % 58
        public = (number >> 16).to_bytes(40, "big")[-32:]
        try:
            good = cls.to_address(public) == address and sr25519.verify(bytes.fromhex(signature), message, public)
        except ValueError:  # not a signature or not a key at all
            good = False
        require(good, "bad_signature", f"not signed by {address}")

    @classmethod
    def to_address(cls, public: bytes) -> str:
        raw = b"\x2a" + public
        number, text = int.from_bytes(raw + hashlib.blake2b(b"SS58PRE" + raw).digest()[:2], "big"), ""
        while number:
            number, digit = divmod(number, 58)
            text = cls.BASE58[digit] + text
        return text


class Gate:
    """Signed requests, btauth/1: lets each one through once."""

    SHAPES = (("version", "1"), ("hotkey", r"\w{1,60}"), ("nonce", r"\d{1,20}"), ("signature", "0x[0-9a-f]{128}"))

    def __init__(self, me: str, validators: list[str]) -> None:
        self._me, self._validators = me, validators
        self._seen: dict[tuple[str, str], float] = {}
        self._lock = threading.Lock()

    def check(self, headers: list[tuple[str, str]], method: str, target: str, body: bytes) -> str:
        """The caller, proven."""
        names = [name.lower() for name, _ in headers]
        proxied = any(name in ("forwarded", "via") or name.startswith("x-forwarded-") for name in names)
        require(not proxied, "forwarded", "came through a proxy")
        fields = {k.lower()[12:]: v for k, v in headers if k.lower().startswith("x-bittensor-")}
        once = len(fields) == sum(name.startswith("x-bittensor-") for name in names)
        require(once, "bad_message", "a header stands twice")
        for name, shape in self.SHAPES:
            require(re.fullmatch(shape, fields.get(name, ""), re.ASCII), "bad_message", f"{name} is malformed")
        sender, nonce, digest = fields["hotkey"], fields["nonce"], hashlib.sha256(body).hexdigest()
        require(fields.get("crypto", "sr25519") == "sr25519", "bad_message", "another signature scheme")
        require(fields.get("receiver") == self._me, "wrong_receiver", "the request is for somebody else")
        require(not self._validators or sender in self._validators, "unknown_caller", "not one I work for")
        age = (time.time_ns() - int(nonce)) / 1e9
        require(-2 <= age <= 10, "stale_request", f"the request is {age:.1f} s old")
        lines = ("btauth/1", "sr25519", method, target, digest, nonce, sender, self._me)
        Key.verify(sender, "\n".join(lines).encode(), fields["signature"][2:])
        with self._lock:
            self._seen = {pair: until for pair, until in self._seen.items() if until > time.monotonic()}
            require((sender, nonce) not in self._seen, "replay", "accepted before")
            self._seen[sender, nonce] = time.monotonic() + 15
        return str(sender)


def write_body(tensors: Tensors) -> bytes:
    header, end = {}, 0
    for name, tensor in tensors.items():
        start, end = end, end + 4 * tensor.size
        header[name] = {"data_offsets": [start, end], "dtype": "F32", "shape": tensor.shape}
    text = canonical(header)
    text += b" " * (-(8 + len(text)) % 64)
    return b"".join((len(text).to_bytes(8, "little"), text, *(t.astype("<f4").tobytes() for t in tensors.values())))


def read_body(body: bytes) -> Tensors:
    """Tensors as the header says. Whether they are the model's is what the model digest proves."""
    data, tensors = 8 + int.from_bytes(body[:8], "little"), {}
    for name, entry in sorted(json.loads(body[8:data]).items()):
        if name != "__metadata__":
            require(entry["dtype"] == "F32", "wrong_dtype", name)
            start, end = entry["data_offsets"]
            tensors[name] = np.frombuffer(body[data + start : data + end], "<f4").reshape(entry["shape"])
    return tensors


def model_digest(tensors: Tensors) -> str:
    digests = {name: blake3(tensor.tobytes()).hexdigest() for name, tensor in tensors.items()}
    lines = (f"{name} {','.join(map(str, t.shape))} {digests[name]}\n" for name, t in tensors.items())
    return str(blake3("".join(lines).encode()).hexdigest())


class Work:
    """An order taken on: its blobs, then its signed answer."""

    def __init__(self, order: Json, name: str) -> None:
        self.order, self.name, self.caller = order, name, order["sender"]
        self.until = time.monotonic() + order["budget_seconds"]
        self.state, self.manifest = order["state"][0]["digest"], order["assignment"]["manifest"]
        self.lengths = {self.manifest: order["assignment"]["manifest_length"], self.state: order["state"][0]["length"]}
        self.blobs: dict[str, bytes] = {}
        self.whole, self.stop, self.done = threading.Event(), threading.Event(), threading.Event()
        self.answer: Json = {}
        self.digest, self.body = "", b""

    def check(self) -> None:
        require(not self.stop.is_set(), "cancelled", "called off")
        require(time.monotonic() < self.until, "late" if self.whole.is_set() else "timed_out", "out of time")

    def run(self, key: Key, text: Text) -> None:
        """In a thread of its own: wait for the blobs, compute, sign."""
        kind, answer = "contribution", {"v": 1, "work_id": self.name, "sender": key.address, "receiver": self.caller}
        answer |= {"run_id": self.order["run_id"], "round": self.order["round"]}
        try:
            answer |= self._compute(text)
        except (Refusal, MemoryError, *MALFORMED) as error:
            refusal = error if isinstance(error, Refusal) else Refusal("compute_failed", repr(error)[:400])
            kind, answer = "failure", answer | refusal.body()
            if refusal.args[0] in ("cancelled", "late", "timed_out"):
                self.stop.set()  # failures of a moment: asked again, it is worked on again
        self.answer = key.seal(kind, answer)
        self.done.set()
        print(f"round {self.order['round']}: {kind} {self.answer['payload']}", flush=True)

    def _compute(self, text: Text) -> Json:
        while not self.whole.wait(0.2):
            self.check()
        order, start = self.order, time.monotonic()
        windows, weights = text.windows(order, self.blobs[self.manifest]), read_body(self.blobs[self.state])
        require(model_digest(weights) == order["parent"], "wrong_state", "not the model that the order names")
        model = GPT2(weights, order["model"]["n_head"], order["model"]["n_layer"])
        loss = model.gradient(windows, self.check)
        require(math.isfinite(loss), "compute_failed", f"the loss is {loss}")
        self.body = write_body(model.g)
        self.digest = blake3(self.body).hexdigest()
        require(len(self.body) <= order["caps"]["answer_bytes"], "too_large", "the answer")
        blob = {"digest": self.digest, "length": len(self.body), "codec": "fp32"}
        claims = {"claimed_loss": loss, "tokens": windows[:, 1:].size, "seconds": time.monotonic() - start}
        return {"parent": order["parent"], "blob": blob, **claims}


class Miner:
    """One order at a time."""

    def __init__(self, key: Key, text: Text, journal: Path, most: int) -> None:
        self.key, self._text, self._journal, self._most = key, text, journal, most
        self._taken: Json = json.loads(journal.read_text()) if journal.exists() else {}
        self._lock = threading.Lock()
        self._work: Work | None = None

    def take(self, caller: str, envelope: Json) -> Json:
        """An order: checked, remembered, begun; the same again finds what there is."""
        order, name = Key.open(envelope, "order", caller), hashlib.sha256(envelope["payload"].encode()).hexdigest()
        self._check(order)
        with self._lock:
            if self._work is None or self._work.name != name or self._work.stop.is_set():
                self._make_room(order, name)
                self._work = Work(order, name)
                threading.Thread(target=self._work.run, args=(self.key, self._text), daemon=True).start()
            work = self._work
        missing = [] if work.done.is_set() else [digest for digest in work.lengths if digest not in work.blobs]
        return {"work_id": name, "lacks": [{"digest": digest, "have": 0} for digest in missing]}

    def _check(self, order: Json) -> None:
        model, state = order["model"], order["state"][0]
        require(order["receiver"] == self.key.address, "wrong_receiver", "the order is for somebody else")
        require(order.get("strategy", "mean_gradient") == "mean_gradient", "unsupported_strategy", "mean_gradient only")
        divides = model["n_head"] > 0 and model["n_embd"] % model["n_head"] == 0
        require(divides and state["length"] <= self._most, "unsupported_model", "malformed or too large")
        plain = len(order["state"]) == 1 and state.get("base") is None and state["codec"] == "fp32"
        require(plain and "fp32" in order["answer_codecs"], "unsupported_codec", "a full state and answers in fp32")
        require(order["assignment"]["manifest_length"] <= 8 * MIB, "too_large", "manifest")

    def _make_room(self, order: Json, name: str) -> None:
        """Refuse what is older than the newest order of its run; that is on disk before we answer."""
        run, age = f"{self.key.address} {order['sender']} {order['run_id']}", [order["attempt"], order["round"]]
        newest = self._taken.get(run, [[-1], ""])
        require(age > newest[0] or name == newest[1], "stale_order", f"{age} after {newest[0]}")
        if self._work is not None:
            mine = self._work.done.is_set() or self._work.caller == order["sender"]
            require(mine, "busy", "at work for another validator")
            self._work.stop.set()
        self._taken[run] = [age, name]
        self._journal.parent.mkdir(parents=True, exist_ok=True)
        draft = self._journal.with_suffix(".new")
        draft.write_text(json.dumps(self._taken))
        draft.replace(self._journal)

    def find(self, caller: str, reason: str, name: str | None = None) -> Work:
        """The caller's work in hand, of that name if one is given."""
        work = self._work
        if work is None or work.caller != caller or name not in (None, work.name):
            raise Refusal(reason, "no such order in hand")
        return work

    def forget(self, work: Work) -> None:
        work.stop.set()
        with self._lock:
            self._work = None if self._work is work else self._work

    def keep(self, caller: str, envelope: Json) -> None:
        """A receipt; it ends its work."""
        receipt = Key.open(envelope, "receipt", caller)
        require(receipt["receiver"] == self.key.address, "wrong_receiver", "the receipt is for somebody else")
        print(f"round {receipt['round']}: receipt {envelope['payload']} signed {envelope['signature']}", flush=True)
        if self._work is not None and (self._work.caller, self._work.name) == (caller, receipt["work_id"]):
            self.forget(self._work)


class Axon(BaseHTTPRequestHandler):
    """The routes. One thread a connection."""

    protocol_version, timeout = "HTTP/1.1", 30
    miner: Miner
    gate: Gate

    def do_GET(self) -> None:
        try:
            self._answer(int(self.headers.get("Content-Length", "0")))
        except (Refusal, *MALFORMED) as error:
            refusal = error if isinstance(error, Refusal) else Refusal("bad_message", repr(error)[:400])
            self._reply(400, refusal.body(), Connection="close")  # there may be an unread body
        except OSError:  # the line is dead
            self.close_connection = True

    do_POST = do_PUT = do_DELETE = do_GET

    def _answer(self, length: int) -> None:
        match = re.fullmatch(r"/v1/(\w+)(?:/([0-9a-f]{64}))?(?:\?(challenge|wait)=([0-9a-f]{1,64}))?", self.path)
        what, name, value = (match[1], match[2], match[4]) if match else ("", "", "")
        if (self.command, what) == ("GET", "info"):
            return self._info(value or "")
        body = self._read(length, MIB) if self.command == "POST" else b""
        caller = self.gate.check(self.headers.items(), self.command, self.path, body)
        match self.command, what:
            case "POST", "work":
                self._reply(202, self.miner.take(caller, json.loads(body)))
            case "POST", "receipts":
                self._reply(204, self.miner.keep(caller, json.loads(body)))
            case "GET", "work":
                work = self.miner.find(caller, "unknown_work", name)
                done = work.done.wait(min(60, int(value or 0)))
                self._reply(200, {"state": "done", "answer": work.answer} if done else {"state": "pending"})
            case "DELETE", "work":
                self._reply(204, self.miner.forget(self.miner.find(caller, "unknown_work", name)))
            case "PUT", "blobs":
                self._put(self.miner.find(caller, "unknown_blob"), name, length)
            case "GET", "blobs":
                self._get(self.miner.find(caller, "unknown_blob"), name)
            case _:
                raise Refusal("bad_message", "no such route")
        return None

    def _info(self, challenge: str) -> None:
        require(len(challenge) == 64, "bad_message", "the challenge is not 64 hex characters")
        info = {"hotkey": self.miner.key.address, "versions": [1], "package": "numpy_miner", "message_bytes": MIB}
        info |= {"state_codecs": ["fp32"], "gradient_codecs": ["fp32"], "strategies": ["mean_gradient"]}
        self._reply(200, self.miner.key.seal("info", info | {"challenge": challenge}))

    def _put(self, work: Work, digest: str, length: int) -> None:
        require(digest in work.lengths, "unknown_blob", "the order does not name it")
        require(length == work.lengths[digest], "wrong_length", f"{work.lengths[digest]} bytes are missing")
        data = self._read(length, length)
        require(blake3(data).hexdigest() == digest, "digest_mismatch", "other bytes than named")
        work.blobs[digest] = data
        if len(work.blobs) == len(work.lengths):
            work.whole.set()
        self._reply(204)

    def _get(self, work: Work, digest: str) -> None:
        require(work.done.is_set() and digest == work.digest, "unknown_blob", "not the answer in hand")
        asked, size = re.fullmatch(r"bytes=(\d{1,16})-", self.headers.get("Range", "")), len(work.body)
        first = int(asked[1]) if asked else 0
        if first >= size:
            return self._reply(416)
        part = {"Content-Range": f"bytes {first}-{size - 1}/{size}"} if asked else {}
        return self._reply(206 if asked else 200, memoryview(work.body)[first:], **part)

    def _read(self, length: int, most: int) -> bytes:
        """The body, now that it is wanted."""
        require("Content-Length" in self.headers, "wrong_length", "send Content-Length")
        require(length <= most, "too_large", f"at most {most} bytes")
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        data = self.rfile.read(length)
        require(len(data) == length, "cut_off", "the body ended early")
        return data

    def _reply(self, status: int, content: Json | memoryview | None = None, **headers: str) -> None:
        body = canonical(content) if isinstance(content, dict) else content or b""
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers if status != 204 else headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def handle_expect_100(self) -> bool:
        return True  # `_read` invites the body

    def log_message(self, *_: object) -> None:
        """The miner prints its own lines."""


def main() -> None:
    home = Path.home() / ".fedgpt2" / "numpy_miner.json"
    parser = argparse.ArgumentParser(description="A federated GPT-2 miner in numpy.", allow_abbrev=False)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; off loopback give --validators")
    parser.add_argument("--port", type=int, default=8095, help="0 takes a free one")
    parser.add_argument("--assets", type=Path, required=True, help="folder with sotu.xz and vocab.bpe.gz")
    parser.add_argument("--hotkey-file", type=Path, help="unencrypted Bittensor hotkey; without it a fresh key")
    parser.add_argument("--validators", nargs="*", default=[], help="hotkeys of the validators to work for; none: any")
    parser.add_argument("--journal", type=Path, default=home, help="remembers the orders taken")
    args = parser.parse_args()
    if args.host not in ("127.0.0.1", "localhost") and not args.validators:
        parser.error("off loopback name the validators you work for with --validators")
    seed = json.loads(args.hotkey_file.read_text())["secretSeed"] if args.hotkey_file else "0x" + secrets.token_hex(32)
    key = Key(bytes.fromhex(seed[2:]))
    Axon.gate = Gate(key.address, args.validators)
    Axon.miner = Miner(key, Text(args.assets), args.journal, 1024 * MIB)
    server = ThreadingHTTPServer((args.host, args.port), Axon)
    print(f"listening on {args.host}:{server.server_port} as {key.address}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
