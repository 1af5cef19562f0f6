"""Two parties with known keys."""

import pytest
from bittensor.sp_core import CRYPTO_SR25519, Keypair

from fedgpt2.identity.signing import Signer


def _signer(byte: int) -> Signer:
    return Signer(Keypair.create_from_seed(bytes([byte]) * 32, CRYPTO_SR25519))


@pytest.fixture(scope="session")
def validator() -> Signer:
    return _signer(1)


@pytest.fixture(scope="session")
def miner() -> Signer:
    return _signer(2)


@pytest.fixture(scope="session")
def stranger() -> Signer:
    return _signer(3)
