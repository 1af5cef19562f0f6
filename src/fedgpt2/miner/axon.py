"""The miner's HTTP side: routes, who may call them, and refusals as JSON. What a request means is in `service`.

    GET    /v1/info?challenge=HEX64     unauthenticated: who answers here, over the caller's challenge
    POST   /v1/work                     an order
    GET    /v1/work/{id}?wait=SECONDS   its answer, or pending (long poll)
    DELETE /v1/work/{id}                call it off
    PUT    /v1/blobs/{digest}           a blob the order names
    GET    /v1/blobs/{digest}           the blob the answer names
    POST   /v1/receipts                 a receipt

A body is read only after everything that headers can decide has been decided.
"""

import hashlib
import re
import time
from collections.abc import Callable

from aiohttp import web

from fedgpt2 import __version__, codec
from fedgpt2.config import MinerLimits
from fedgpt2.errors import PeerError, ProtocolError, Reason, Refused, SetupError, printable
from fedgpt2.identity.auth import Authenticator, announced_digest
from fedgpt2.identity.signing import Signer
from fedgpt2.link.http_server import (
    ByteBudget,
    Handler,
    hold_body,
    message_response,
    read_message,
    receive_blob,
    refusal_response,
    send_blob,
    taken_response,
)
from fedgpt2.miner.service import Miner
from fedgpt2.protocol.messages import PROTOCOL_VERSION, STRATEGY, Envelope, Info, decode
from fedgpt2.types import Hotkey

__all__ = ["Axon"]

_CHALLENGE = re.compile(r"[0-9a-f]{64}")
_SECONDS = re.compile(r"[0-9]{1,4}", re.ASCII)
_LONGEST_WAIT = 60.0
_QUIET_SECONDS = 10.0  # between two lines about refusals for the same reason
_UNVERIFIED_BYTES = 8 << 20  # bodies that are read before their senders' signatures can be checked, in all
_EMPTY = hashlib.sha256(b"").hexdigest()


class Axon:
    """The application of one miner."""

    def __init__(
        self,
        miner: Miner,
        signer: Signer,
        authenticator: Authenticator,
        limits: MinerLimits,
        say: Callable[[str], None],
    ) -> None:
        self._miner = miner
        self._signer = signer
        self._authenticator = authenticator
        self._limits = limits
        self._say = say
        self._unverified = ByteBudget(_UNVERIFIED_BYTES)
        self._said: dict[Reason, float] = {}

    def app(self) -> web.Application:
        """The routes."""
        app = web.Application(middlewares=[self._answer_failures])
        route = app.router.add_route
        route("GET", "/v1/info", self._info)
        route("POST", "/v1/work", self._take, expect_handler=hold_body)
        route("GET", "/v1/work/{id}", self._wait)
        route("DELETE", "/v1/work/{id}", self._cancel)
        route("PUT", "/v1/blobs/{digest}", self._put, expect_handler=hold_body)
        route("GET", "/v1/blobs/{digest}", self._get)
        route("POST", "/v1/receipts", self._receipt, expect_handler=hold_body)
        return app

    async def _info(self, request: web.Request) -> web.Response:
        self._authenticator.check_forwarded(request.headers)
        challenge = request.query.get("challenge", "")
        if not _CHALLENGE.fullmatch(challenge):
            raise ProtocolError("challenge is not 64 lower-case hex characters")
        info = Info(
            hotkey=self._signer.hotkey,
            versions=(PROTOCOL_VERSION,),
            package=f"fedgpt2 {__version__}",
            state_codecs=codec.CODECS.names,
            gradient_codecs=codec.CODECS.names,
            strategies=(STRATEGY,),
            message_bytes=self._limits.message_bytes,
            challenge=challenge,
        )
        return message_response(self._signer.seal("info", info))

    async def _take(self, request: web.Request) -> web.Response:
        caller, envelope = await self._signed(request)
        return message_response(await self._miner.take(envelope, caller), status=202)

    async def _wait(self, request: web.Request) -> web.Response:
        caller = self._caller(request)
        wait = request.query.get("wait", "0")
        if not _SECONDS.fullmatch(wait):
            raise ProtocolError("wait is not a number of seconds")
        seconds = min(float(wait), _LONGEST_WAIT)
        return message_response(await self._miner.wait(request.match_info["id"], caller, seconds))

    async def _cancel(self, request: web.Request) -> web.Response:
        caller = self._caller(request)
        await self._miner.cancel(request.match_info["id"], caller)
        return web.Response(status=204)

    async def _put(self, request: web.Request) -> web.Response:
        caller = self._caller(request)
        delivery = self._miner.delivery(request.match_info["digest"], caller)
        seconds = self._limits.progress_seconds
        delivery.complete(await receive_blob(request, delivery.incoming, progress_seconds=seconds))
        return taken_response(request)

    async def _get(self, request: web.Request) -> web.StreamResponse:
        caller = self._caller(request)
        job = self._miner.answered(request.match_info["digest"], caller)
        with job.read_by(request.transport) as blob:
            return await send_blob(request, blob, progress_seconds=self._limits.progress_seconds)

    async def _receipt(self, request: web.Request) -> web.Response:
        caller, envelope = await self._signed(request)
        await self._miner.receive_receipt(envelope, caller)
        return web.Response(status=204)

    def _caller(self, request: web.Request) -> Hotkey:
        """The caller of a request that is signed over the empty body."""
        return self._verify(request, _EMPTY)

    async def _signed(self, request: web.Request) -> tuple[Hotkey, Envelope]:
        """The caller of a request with a message, and the message.

        The signature is checked before the body is read, if the sender announced the body's digest; the bodies of all
        other senders share a budget until their signatures are checked.
        """
        announced = announced_digest(request.headers)
        if announced is not None:
            caller = self._verify(request, announced)
            body = await self._read(request, None)
            if hashlib.sha256(body).hexdigest() != announced:
                raise Refused(Reason.BAD_SIGNATURE, "the body is not the one that Content-Digest announced")
        else:
            self._authenticator.check_headers(request.headers, request.method, request.raw_path)
            body = await self._read(request, self._unverified)
            caller = self._verify(request, hashlib.sha256(body).hexdigest())
        return caller, decode(body, Envelope)

    def _verify(self, request: web.Request, body_digest: str) -> Hotkey:
        return self._authenticator.verify(request.headers, body_digest, request.method, request.raw_path)

    async def _read(self, request: web.Request, budget: ByteBudget | None) -> bytes:
        limits = self._limits
        return await read_message(request, limits.message_bytes, seconds=limits.request_seconds, budget=budget)

    @web.middleware
    async def _answer_failures(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Every failure becomes its answer; one of this machine (its disk is full) ends the miner."""
        try:
            return await handler(request)
        except PeerError as error:
            self._tell(request, error)
            return refusal_response(error)
        except web.HTTPException as error:
            response = refusal_response(ProtocolError(f"{request.method} {request.path[:100]}: {error.reason}"))
            response.set_status(error.status)
            return response
        except SetupError as error:
            self._miner.fail(error)  # its line is for the operator; it may name folders, no business of the caller
            return refusal_response(Refused(Reason.COMPUTE_FAILED, "the miner cannot go on"))

    def _tell(self, request: web.Request, error: PeerError) -> None:
        now = time.monotonic()
        if now - self._said.get(error.reason, -_QUIET_SECONDS) >= _QUIET_SECONDS:
            self._said[error.reason] = now
            self._say(f"refused {request.method} {printable(request.path[:20])} of {request.remote}: {error}")
