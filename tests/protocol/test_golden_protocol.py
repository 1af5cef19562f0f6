"""Golden vectors: the bytes another implementation must produce. Rewritten only with FEDGPT2_WRITE_GOLDEN=1."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from fedgpt2.errors import Culprit
from fedgpt2.identity.keys import verify
from fedgpt2.identity.signing import Signer, open_envelope
from fedgpt2.protocol import messages
from fedgpt2.protocol.digests import blob_digest, model_digest, work_id
from fedgpt2.protocol.messages import Assignment, BlobRef, Caps, Envelope, Order, decode, encode
from fedgpt2.protocol.tensors import write_header
from fedgpt2.types import ModelShape

GOLDEN = Path(__file__).parents[1] / "golden" / "protocol.json"
SEED = "11" * 32  # of the test key that signs; known to everyone, good for nothing else
SIGNER = "5DtDLm5rQHShDqojQpsvcN8tRXHVFaecfDoRet1SU6BFD9Fi"
OTHER = "5Fpfx4iDtrrY99VGkQnLXASytC2y9Z3o8KUyTtD4w7o5SZcA"
SCHEMA = {"wte.weight": (3, 2), "ln_f.bias": (2,), "h.0.attn.c_attn.weight": (2, 6)}
WEIGHTS = bytes(range(80))


def hex_of(word: str) -> str:
    """A digest-like value that says in the vectors what it stands for."""
    return hashlib.sha256(word.encode()).hexdigest()


PARTIES = {"run_id": hex_of("run"), "round": 7, "sender": SIGNER, "receiver": OTHER}
STATE = BlobRef(digest=hex_of("state"), length=497_759_232 + 14_848, codec="fp32")
ORDER = Order(
    **PARTIES,
    attempt=1,
    parent=hex_of("parent"),
    model=ModelShape(n_layer=12, n_head=12, n_embd=768, block_size=1024),
    state=(STATE,),
    assignment=Assignment(
        manifest=hex_of("manifest"), manifest_length=421, slot=3, pages=(12, 40), windows=((0, 1, 2), (5,))
    ),
    answer_codecs=("fp32", "bf16"),
    caps=Caps(answer_bytes=498_000_000),
    budget_seconds=600.0,
)
WORK = work_id(encode(ORDER))
PAYLOADS = {
    "info": messages.Info(
        hotkey=SIGNER,
        versions=(1,),
        package="fedgpt2 0.1.0",
        state_codecs=("fp32", "bf16"),
        gradient_codecs=("fp32", "bf16"),
        strategies=("mean_gradient",),
        message_bytes=1 << 20,
        challenge=hex_of("challenge"),
    ),
    "order": ORDER,
    "contribution": messages.Contribution(
        **PARTIES,
        work_id=WORK,
        parent=ORDER.parent,
        blob=BlobRef(digest=hex_of("gradient"), length=STATE.length, codec="fp32"),
        claimed_loss=10.8125,
        tokens=4096,
        seconds=12.5,
    ),
    "failure": messages.Failure(**PARTIES, work_id=WORK, reason="data_unavailable", detail="page 12: Größe ≠ manifest"),
    "receipt": messages.Receipt(
        **PARTIES,
        work_id=WORK,
        status="refused",
        reason="wrong_shape",
        culprit=Culprit.MINER,
        detail="wte.weight",
        tokens=0,
        norm=None,
        weight=0.0,
        rating=24.5,
        ranking=messages.Ranked(
            verdict="fault",
            proven=0.0625,
            place=5,
            compared=5,
            rating_before=25.0,
            sigma_before=8.25,
            rating_after=24.5,
            sigma_after=8.0,
            reliability=0.9375,
            share=1.0,
            weight=0.0,
        ),
        windows=((3, 17), (0, 2)),
        applied=True,
        model=hex_of("model"),
        ledger_head=hex_of("head"),
    ),
}
ENVELOPE = Envelope(kind="order", payload=encode(ORDER).decode(), signer=SIGNER, signature="ab" * 64)
UNSIGNED = {
    "accepted": messages.Accepted(work_id=WORK, lacks=(messages.Lack(digest=STATE.digest, have=1 << 20),)),
    "envelope": ENVELOPE,
    "refusal": messages.RefusalBody(reason="stale_order", detail="round 7 is over"),
    "work_status.pending": messages.WorkStatus(state="pending"),
    "work_status.done": messages.WorkStatus(state="done", answer=ENVELOPE),
}


def current() -> dict[str, object]:
    """Everything but the signatures, which differ each time."""
    blob = write_header(SCHEMA, "F32") + WEIGHTS
    return {
        "messages": {kind: encode(m).decode() for kind, m in (PAYLOADS | UNSIGNED).items()},
        "signed_bytes": {k: messages.signed_bytes(k, encode(m).decode()).hex() for k, m in PAYLOADS.items()},
        "work_id": WORK,
        "tensors": {
            "schema": {name: list(shape) for name, shape in sorted(SCHEMA.items())},
            "weights": WEIGHTS.hex(),
            "header.F32": write_header(SCHEMA, "F32").hex(),
            "header.BF16": write_header(SCHEMA, "BF16").hex(),
            "blob_digest.F32": blob_digest(blob),
            "model_digest": model_digest(SCHEMA, memoryview(WEIGHTS)),
        },
    }


def signer() -> Signer:
    from bittensor.sp_core import CRYPTO_SR25519, Keypair

    return Signer(Keypair.create_from_seed(bytes.fromhex(SEED), CRYPTO_SR25519))


@pytest.fixture(scope="module")
def golden():
    if os.environ.get("FEDGPT2_WRITE_GOLDEN") == "1":
        sealed = {kind: signer().seal(kind, message).signature for kind, message in PAYLOADS.items()}
        keys = {"seed": SEED, "signer": SIGNER, "receiver": OTHER}
        text = json.dumps(current() | {"keys": keys, "signatures": sealed}, indent=1, ensure_ascii=False)
        GOLDEN.write_text(text + "\n", encoding="utf-8")
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


@pytest.mark.parametrize("part", ["messages", "signed_bytes", "work_id", "tensors"])
def test_the_wire_has_not_changed(golden, part):
    assert current()[part] == golden[part]


@pytest.mark.parametrize("kind", sorted(PAYLOADS | UNSIGNED))
def test_golden_messages_decode_to_what_they_were(golden, kind):
    message = (PAYLOADS | UNSIGNED)[kind]
    assert decode(golden["messages"][kind], type(message)) == message


@pytest.mark.parametrize("kind", sorted(PAYLOADS))
def test_golden_signatures_verify(golden, kind):
    signature = bytes.fromhex(golden["signatures"][kind])
    assert verify(SIGNER, bytes.fromhex(golden["signed_bytes"][kind]), signature)
    envelope = Envelope(
        kind=kind, payload=golden["messages"][kind], signer=SIGNER, signature=golden["signatures"][kind]
    )
    assert open_envelope(envelope, kind, type(PAYLOADS[kind]), signer=SIGNER) == PAYLOADS[kind]


def test_the_golden_key_is_the_seed_s(golden):
    assert golden["keys"]["seed"] == SEED
    assert signer().hotkey == golden["keys"]["signer"] == SIGNER
