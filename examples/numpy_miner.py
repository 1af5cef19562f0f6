"""A whole federated GPT-2 miner in one file of numpy, written from docs/protocol.md and docs/data.md alone.

    pip install -r examples/requirements.txt
    python examples/numpy_miner.py --port 8095 --assets src/fedgpt2/data/assets --hotkey-file HOTKEY

It listens on loopback, for any validator there, and trains on the embedded corpus (`--data.source sample` at the
validator) in codec fp32. HOTKEY is an unencrypted Bittensor hotkey file; without it the miner takes a fresh key. It
takes the assignment as the validator states it, and asks for every blob from its first byte, as the documents allow.
"""

import argparse
import gzip
import json
import lzma
import math
import re
import secrets
import threading
import time
from collections.abc import Callable
from hashlib import blake2b, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import sr25519
import tiktoken
from blake3 import blake3

MIB = 1 << 20
MALFORMED = (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, RecursionError)  # a bad message, read
BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
KEYS = "v run_id round attempt sender receiver parent model state assignment strategy answer_codecs caps budget_seconds"
canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode


class Refusal(Exception): ...  # a reason of the protocol's table, and a line for people


def require(condition: object, reason: str, detail: str = "") -> None:
    if not condition:
        raise Refusal(reason, detail)


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


class GPT2:
    """The model, and in `g` the gradients of its weights `w`. A name with a d in front is a gradient too."""

    def __init__(self, weights: dict, heads: int, layers: int) -> None:
        self.w, self.heads, self.layers = weights, heads, layers
        self.g = {name: np.zeros_like(tensor) for name, tensor in weights.items()}

    def gradient(self, windows: np.ndarray, check: Callable[[], None]) -> float:
        """Mean loss over the targets of `windows` [n, L + 1]; its gradient is in `g` then. `check` raises to end it."""
        wte, targets, loss = self.w["wte.weight"], windows[:, 1:], 0.0
        for window in windows:
            check()
            x, saved = wte[window[:-1]] + self.w["wpe.weight"][: len(window) - 1], []
            for layer in range(self.layers):
                x, *values = self._block(x, f"h.{layer}")
                saved.append(values)
            h, *norm = self._norm(x, "ln_f")
            p, hit = softmax(h @ wte.T), (np.arange(len(h)), window[1:])
            loss -= float(np.log(p[hit], dtype=np.float64).sum()) / targets.size
            p[hit] -= 1
            p /= targets.size
            self.g["wte.weight"] += p.T @ h
            dx = self._norm_back(p @ wte, "ln_f", *norm)
            for layer in reversed(range(self.layers)):
                dx = self._block_back(dx, f"h.{layer}", saved[layer])
            np.add.at(self.g["wte.weight"], window[:-1], dx)
            self.g["wpe.weight"][: len(dx)] += dx
        return loss

    def _block(self, x: np.ndarray, name: str) -> tuple:
        (t, c), d = x.shape, x.shape[1] // self.heads
        a, *norm_1 = self._norm(x, f"{name}.ln_1")
        q, k, v = self._affine(a, f"{name}.attn.c_attn").reshape(t, 3, self.heads, d).transpose(1, 2, 0, 3)
        p = softmax(np.where(np.tri(t, dtype=bool), q @ k.swapaxes(1, 2) / math.sqrt(d), np.float32(-np.inf)))
        y = (p @ v).swapaxes(0, 1).reshape(t, c)
        x = x + self._affine(y, f"{name}.attn.c_proj")
        m, *norm_2 = self._norm(x, f"{name}.ln_2")
        u = self._affine(m, f"{name}.mlp.c_fc")
        s = np.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u * u * u))
        f = 0.5 * u * (1 + s)
        return x + self._affine(f, f"{name}.mlp.c_proj"), a, norm_1, q, k, v, p, y, m, norm_2, u, s, f

    def _block_back(self, dx: np.ndarray, name: str, values: list) -> np.ndarray:
        a, norm_1, q, k, v, p, y, m, norm_2, u, s, f = values
        df = self._affine_back(dx, f"{name}.mlp.c_proj", f)
        du = df * 0.5 * (1 + s + u * (1 - s * s) * math.sqrt(2 / math.pi) * (1 + 0.134145 * u * u))
        dx = dx + self._norm_back(self._affine_back(du, f"{name}.mlp.c_fc", m), f"{name}.ln_2", *norm_2)
        do = self._affine_back(dx, f"{name}.attn.c_proj", y).reshape(len(y), self.heads, -1).swapaxes(0, 1)
        dp = do @ v.swapaxes(1, 2)
        ds = p * (dp - (dp * p).sum(-1, keepdims=True)) / math.sqrt(q.shape[2])
        dqkv = np.stack((ds @ k, ds.swapaxes(1, 2) @ q, p.swapaxes(1, 2) @ do)).transpose(2, 0, 1, 3)
        da = self._affine_back(dqkv.reshape(len(y), -1), f"{name}.attn.c_attn", a)
        return dx + self._norm_back(da, f"{name}.ln_1", *norm_1)

    def _affine(self, x: np.ndarray, name: str) -> np.ndarray:
        return x @ self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def _affine_back(self, dy: np.ndarray, name: str, x: np.ndarray) -> np.ndarray:
        self.g[f"{name}.weight"] += x.T @ dy
        self.g[f"{name}.bias"] += dy.sum(0)
        return dy @ self.w[f"{name}.weight"].T

    def _norm(self, x: np.ndarray, name: str) -> tuple:
        x = x - x.mean(-1, keepdims=True)
        scale = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)
        return x * scale * self.w[f"{name}.weight"] + self.w[f"{name}.bias"], x * scale, scale

    def _norm_back(self, dy: np.ndarray, name: str, unit: np.ndarray, scale: np.ndarray) -> np.ndarray:
        self.g[f"{name}.weight"] += (dy * unit).sum(0)
        self.g[f"{name}.bias"] += dy.sum(0)
        d = dy * self.w[f"{name}.weight"]
        return scale * (d - d.mean(-1, keepdims=True) - unit * (d * unit).mean(-1, keepdims=True))


class Text:
    """The embedded corpus, and the windows of it that an order names."""

    def __init__(self, assets: Path) -> None:
        raw = lzma.decompress((assets / "sotu.xz").read_bytes())
        bpe, pools = gzip.decompress((assets / "vocab.bpe.gz").read_bytes()), {"assign": [], "report": [], "score": []}
        for number, address in enumerate(raw.decode().removeprefix("# ").split("\n# ")):
            pools[{9: "score", 19: "report"}.get(number % 20, "assign")] += address.rstrip("\n").split("\n")[1:]
        self._pages = list(zip(*[iter(pools["assign"])] * 8, strict=False))  # the last, short one is not used
        self.facts = {"version": 1, "scheme": 1, "source": "sample", "page_documents": 8}
        self.facts |= {"files": [["sotu.txt", len(raw), sha256(raw).hexdigest()]], "tokenizer": sha256(bpe).hexdigest()}
        self.facts["pools"] = {pool: len(documents) // 8 for pool, documents in pools.items()}
        plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
        order = plain + sorted(set(range(256)) - set(plain))
        symbols = dict(zip(map(chr, (*plain, *range(256, 324))), order, strict=True))
        merges = (bytes(symbols[c] for c in line.replace(" ", "")) for line in bpe.decode().split("\n")[1:-1])
        ranks = {token: rank for rank, token in enumerate((*(bytes([byte]) for byte in order), *merges))}
        self.encode = tiktoken.Encoding("", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={}).encode_ordinary

    def windows(self, order: dict, manifest: bytes) -> np.ndarray:
        """The windows of an order, [n, seq_len + 1], once the manifest is found to be of this very text."""
        m, share, found = json.loads(manifest), order["assignment"], []
        settings = {key: int(m[key]) for key in ("max_pages", "max_slots", "seed", "seq_len", "span")}
        require(canonical(self.facts | settings).encode() == manifest, "wrong_manifest", "another text")
        size = m["seq_len"]
        for page, row in zip(share["pages"], share["windows"], strict=True):
            require(0 <= page < len(self._pages) and min(row, default=0) >= 0, "wrong_assignment", f"no page {page}")
            stream = [token for document in self._pages[page] for token in (50256, *self.encode(document))]
            found += [stream[place * size : (place + 1) * size + 1] for place in row]
        fit = found and 0 < size <= order["model"]["block_size"] and {len(window) for window in found} == {size + 1}
        require(fit, "wrong_assignment", "longer than the model or the page")
        return np.array(found)


def write_body(tensors: dict) -> bytes:
    header, end = {}, 0
    for name, tensor in tensors.items():
        header[name] = {"data_offsets": [end, end := end + tensor.nbytes], "dtype": "F32", "shape": tensor.shape}
    text = canonical(header).encode()
    text += b" " * (-(8 + len(text)) % 64)
    return b"".join((len(text).to_bytes(8, "little"), text, *(tensor.tobytes() for tensor in tensors.values())))


def read_body(body: bytes) -> tuple[dict, str]:
    """Tensors as the header says, and their model digest, which proves that they are the model's."""
    data, tensors, lines = 8 + int.from_bytes(body[:8], "little"), {}, ""
    for name, entry in sorted(json.loads(body[8:data]).items()):
        if name != "__metadata__":
            require(entry["dtype"] == "F32", "wrong_dtype", name)
            (start, end), shape = entry["data_offsets"], entry["shape"]
            tensors[name] = np.frombuffer(body[data + start : data + end], "<f4").reshape(shape)
            lines += f"{name} {','.join(map(str, shape))} {blake3(tensors[name].tobytes()).hexdigest()}\n"
    return tensors, blake3(lines.encode()).hexdigest()


def to_address(public: bytes) -> str:
    raw = b"\x2a" + public
    number = int.from_bytes(raw + blake2b(b"SS58PRE" + raw).digest()[:2], "big")
    return "".join(BASE58[number // 58**place % 58] for place in reversed(range(50))).lstrip("1")


def verify(address: str, message: bytes, signature: str) -> None:
    number = sum(BASE58.find(letter) * 58**place for place, letter in enumerate(reversed(address)))
    public = ((number >> 16) % (1 << 256)).to_bytes(32, "big")
    try:
        good = to_address(public) == address and sr25519.verify(bytes.fromhex(signature), message, public)
    except ValueError:  # not a signature or not a key at all
        good = False
    require(good, "bad_signature", f"not signed by {address}")


class Work(threading.Thread):
    """An order taken on: waits for its blobs, computes, signs; then it is `done`."""

    def __init__(self, order: dict, work_id: str, miner: "Miner") -> None:
        super().__init__(daemon=True)
        self.order, self.id, self.caller, self._miner = order, work_id, order["sender"], miner
        share, state = order["assignment"], order["state"][0]
        self.lengths = {share["manifest"]: share["manifest_length"], state["digest"]: state["length"]}
        self.blobs, self.done, self.answer, self.digest, self.body = {}, threading.Event(), None, "", b""
        self.until, self.stopped, self.forgotten = time.monotonic() + order["budget_seconds"], False, False

    def check(self) -> None:
        require(not self.stopped, "cancelled", "called off")
        reason = "late" if len(self.blobs) == len(self.lengths) else "timed_out"
        require(time.monotonic() < self.until, reason, "out of time")

    def run(self) -> None:
        order, says = self.order, {"work_id": self.id, "sender": self._miner.address, "receiver": self.caller}
        try:
            while len(self.blobs) < len(self.lengths):
                self.check()
                time.sleep(0.02)
            start, (manifest, state) = time.monotonic(), (self.blobs[digest] for digest in self.lengths)
            windows, (weights, parent) = self._miner.text.windows(order, manifest), read_body(state)
            require(parent == order["parent"], "wrong_state", "not the model that the order names")
            model = GPT2(weights, order["model"]["n_head"], order["model"]["n_layer"])
            loss = model.gradient(windows, self.check)
            require(math.isfinite(loss), "compute_failed", f"the loss is {loss}")
            self.body = write_body(model.g)
            self.digest = blake3(self.body).hexdigest()
            require(len(self.body) <= order["caps"]["answer_bytes"], "too_large", "the answer")
            blob = {"digest": self.digest, "length": len(self.body), "codec": "fp32"}
            claims = {"claimed_loss": loss, "tokens": windows[:, 1:].size, "seconds": time.monotonic() - start}
            kind, said = "contribution", {"parent": parent, "blob": blob, **claims}
        except (Refusal, MemoryError, *MALFORMED) as error:
            reason, detail = error.args if isinstance(error, Refusal) else ("compute_failed", repr(error)[:400])
            kind, said = "failure", {"reason": reason, "detail": detail}
            self.stopped = reason in ("cancelled", "late", "timed_out")  # asked again, it is worked on again
        self.answer = self._miner.seal(kind, says | said | {"run_id": order["run_id"], "round": order["round"]})
        self.done.set()
        print(f"round {order['round']!r}: {kind} {self.answer['payload']}", flush=True)


class Miner(ThreadingHTTPServer):
    """One order at a time, for callers that prove who they are."""

    def __init__(self, port: int, seed: bytes, text: Text, journal: Path) -> None:
        super().__init__(("127.0.0.1", port), Axon)
        self._pair, self.text, self._journal, self.lock = sr25519.pair_from_seed(seed), text, journal, threading.Lock()
        self._taken = json.loads(journal.read_text()) if journal.exists() else {}
        self.address, self.work, self.seen = to_address(self._pair[0]), None, {}

    def seal(self, kind: str, message: dict) -> dict:
        payload = canonical(message)
        signature = sr25519.sign(self._pair, f"fedgpt2/1/{kind}\n{payload}".encode()).hex()
        return {"kind": kind, "payload": payload, "signer": self.address, "signature": signature}

    def open(self, envelope: dict, kind: str, caller: str) -> dict:
        require(envelope["kind"] == kind, "bad_message", f"not an envelope of the {kind}")
        require(envelope["signer"] == caller, "bad_signature", "signed by another key than the request")
        verify(caller, f"fedgpt2/1/{kind}\n{envelope['payload']}".encode(), envelope["signature"])
        message = json.loads(envelope["payload"])
        require(message.get("v", 1) == 1, "unsupported_version")
        require(message["sender"] == caller, "bad_signature", "names another sender than its signer")
        require(message["receiver"] == self.address, "wrong_receiver", f"the {kind} is for somebody else")
        return message

    def take(self, caller: str, envelope: dict) -> dict:
        """An order: checked, remembered on disk, begun; the same again finds what there is."""
        order, name = self.open(envelope, "order", caller), sha256(envelope["payload"].encode()).hexdigest()
        require(order.keys() <= set(KEYS.split()), "bad_message", "unknown fields")
        model, state = order["model"], order["state"][0]
        require(order.get("strategy", "mean_gradient") == "mean_gradient", "unsupported_strategy", "mean_gradient only")
        divides = model["n_head"] > 0 and model["n_embd"] % model["n_head"] == 0
        require(divides and state["length"] <= 1024 * MIB, "unsupported_model", "malformed or too large")
        plain = len(order["state"]) == 1 and state.get("base") is None and state["codec"] == "fp32"
        require(plain and "fp32" in order["answer_codecs"], "unsupported_codec", "a full state and answers in fp32")
        require(order["assignment"]["manifest_length"] <= 8 * MIB, "too_large", "manifest")
        run, age = f"{self.address} {caller} {order['run_id']}", [order["attempt"], order["round"]]
        with self.lock:
            work, (newest, known) = self.work, self._taken.get(run, ([-1], ""))
            if work is None or work.id != name or work.stopped:
                require(age > newest or name == known, "stale_order", f"{age} after {newest}")
                if work is not None:
                    require(work.done.is_set() or work.caller == caller, "busy", "at work for another validator")
                    work.stopped = True
                self._taken[run] = age, name
                draft = self._journal.with_suffix(".new")
                draft.write_text(json.dumps(self._taken))
                draft.replace(self._journal)
                work = self.work = Work(order, name, self)
                work.start()
        lacks = [{"digest": digest, "have": 0} for digest in work.lengths if digest not in work.blobs]
        return {"work_id": name, "lacks": lacks}


class Axon(BaseHTTPRequestHandler):
    """The routes. One thread a connection."""

    protocol_version, timeout = "HTTP/1.1", 30

    def do_GET(self) -> None:
        try:
            self._reply(*self._answer(int(self.headers.get("Content-Length", "0"))))
        except (Refusal, *MALFORMED) as error:
            reason, detail = error.args if isinstance(error, Refusal) else ("bad_message", repr(error)[:400])
            self._reply(400, {"reason": reason, "detail": detail}, {"Connection": "close"})  # a body may be unread
        except OSError:  # the line is dead
            self.close_connection = True

    do_POST = do_PUT = do_DELETE = do_GET

    def _answer(self, length: int) -> tuple:
        route = re.fullmatch(r"/v1/(info|work|blobs|receipts)(?:/([0-9a-f]{64}))?(?:\?[a-z]+=([0-9a-f]+))?", self.path)
        require(route, "bad_message", "no such route")
        (what, name, value), miner = route.groups(), self.server
        if (self.command, what) == ("GET", "info"):
            require(value and len(value) == 64, "bad_message", "the challenge is not 64 hex characters")
            info = {"hotkey": miner.address, "versions": [1], "package": "numpy_miner", "message_bytes": MIB}
            info |= {"state_codecs": ["fp32"], "gradient_codecs": ["fp32"], "strategies": ["mean_gradient"]}
            return 200, miner.seal("info", info | {"challenge": value})
        body = self._read(length, MIB) if self.command == "POST" else b""
        caller, work = self._caller(body), miner.work
        mine = work and not work.forgotten and work.caller == caller and (what == "blobs" or name == work.id)
        require(body or mine, "unknown_blob" if what == "blobs" else "unknown_work", "no such order in hand")
        match self.command, what:
            case "POST", "work":
                return 202, miner.take(caller, json.loads(body))
            case "POST", "receipts":
                receipt = miner.open(json.loads(body), "receipt", caller)
                print(f"round {receipt['round']!r}: receipt {canonical(json.loads(body))}", flush=True)
                if work and (work.caller, work.id) == (caller, receipt["work_id"]):
                    work.stopped = work.forgotten = True
            case "GET", "work":
                done = work.done.wait(min(60, int(value or 0)))
                return 200, {"state": "done", "answer": work.answer} if done else {"state": "pending"}
            case "DELETE", "work":
                work.stopped = work.forgotten = True
            case "PUT", "blobs":
                require(name in work.lengths, "unknown_blob", "the order does not name it")
                require(length == work.lengths[name], "wrong_length", f"{work.lengths[name]} bytes are missing")
                data = self._read(length, length)
                require(blake3(data).hexdigest() == name, "digest_mismatch", "other bytes than named")
                work.blobs[name] = data
            case "GET", "blobs":
                require(work.done.is_set() and name == work.digest, "unknown_blob", "not the answer in hand")
                asked, size = re.fullmatch(r"bytes=(\d{1,16})-", self.headers.get("Range", "")), len(work.body)
                first = int(asked[1]) if asked else 0
                part = {"Content-Range": f"bytes {first}-{size - 1}/{size}"} if asked else {}
                return (206 if asked else 200, work.body[first:], part) if first < size else (416,)
            case _:
                raise Refusal("bad_message", "no such route")
        return (204,)

    def _caller(self, body: bytes) -> str:
        """Who signed this request (btauth/1). Lets each one through once."""
        require(not re.search(r"(?im)^(forwarded|via|x-forwarded-.*)$", "\n".join(self.headers)), "forwarded")
        names, miner = ("Version", "Hotkey", "Receiver", "Nonce", "Signature", "Crypto"), self.server
        line = " ".join(value for name in names for value in self.headers.get_all(f"X-Bittensor-{name}", ()))
        shape = re.fullmatch(r"1 (\w{1,60}) (\w{1,60}) (\d{1,20}) 0x([0-9a-f]{128})( sr25519)?", line, re.ASCII)
        require(shape, "bad_message", "headers out of shape")
        sender, receiver, nonce, signature, _ = shape.groups()
        require(receiver == miner.address, "wrong_receiver", "the request is for somebody else")
        age, digest = (time.time_ns() - int(nonce)) / 1e9, sha256(body).hexdigest()
        require(-2 <= age <= 10, "stale_request", f"the request is {age:.1f} s old")
        signed = ("btauth/1", "sr25519", self.command, self.path, digest, nonce, sender, receiver)
        verify(sender, "\n".join(signed).encode(), signature)
        with miner.lock:
            miner.seen = {pair: until for pair, until in miner.seen.items() if until > time.monotonic()}
            require((sender, nonce) not in miner.seen, "replay", "accepted before")
            miner.seen[sender, nonce] = time.monotonic() + 15
        return sender

    def _read(self, length: int, most: int) -> bytes:
        """The body, now that it is wanted."""
        require(0 < length <= most, "too_large" if length > 0 else "wrong_length", f"1 to {most} bytes")
        if self.headers.get("Expect", "").lower() == "100-continue":
            super().handle_expect_100()
        return self.rfile.read(length)

    def _reply(self, status: int, content: dict | bytes = b"", headers: dict | None = None) -> None:
        body = canonical(content).encode() if isinstance(content, dict) else content
        self.send_response(status)
        for name, value in ({} if status == 204 else {"Content-Length": len(body), **(headers or {})}).items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)

    def handle_expect_100(self) -> bool:
        return True  # `_read` invites the body

    def log_message(self, *_: object) -> None: ...


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A federated GPT-2 miner in numpy.", allow_abbrev=False)
    parser.add_argument("--port", type=int, default=8095, help="0 takes a free one")
    parser.add_argument("--assets", type=Path, required=True, help="folder with sotu.xz and vocab.bpe.gz")
    parser.add_argument("--hotkey-file", type=Path, help="unencrypted Bittensor hotkey; without it a fresh key")
    parser.add_argument("--journal", type=Path, default=Path("numpy_miner.json"), help="remembers the orders taken")
    args = parser.parse_args()
    seed = json.loads(args.hotkey_file.read_text())["secretSeed"] if args.hotkey_file else "0x" + secrets.token_hex(32)
    miner = Miner(args.port, bytes.fromhex(seed[2:]), Text(args.assets), args.journal)
    print(f"listening on 127.0.0.1:{miner.server_port} as {miner.address}", flush=True)
    miner.serve_forever()
