"""Opening, and on loopback making, the hotkey of a Bittensor wallet."""

import fcntl
import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fedgpt2 import config
from fedgpt2.errors import UsageError

if TYPE_CHECKING:
    from bittensor.sp_core import Keypair
    from bittensor.wallet import Wallet

__all__ = ["open_hotkey"]


def open_hotkey(wallet: config.Wallet, *, create: bool, notice: Callable[[str], None]) -> "Keypair":
    """The key pair of `wallet`'s hotkey, able to sign (sr25519).

    A missing hotkey is made when `create` is true, which callers set only if every address is loopback; `notice`
    then gets one line. No mnemonic is ever printed and no coldkey is touched. Raises UsageError, one line, for a
    wallet that is missing, encrypted, unreadable, without its secret half, or of another signature scheme.
    """
    opened = _wallet(wallet)
    if not opened.hotkey_file.exists_on_device():
        if not create:
            raise UsageError(_missing(wallet, opened))
        if _create(wallet, opened):
            notice(f"made hotkey {wallet.hotkey} of wallet {wallet.name} in {opened.hotkey_file.path}")
    return _unlocked(opened)


def _wallet(wallet: config.Wallet) -> "Wallet":
    from bittensor.wallet import Wallet as BittensorWallet

    for flag, word in (("--wallet.name", wallet.name), ("--wallet.hotkey", wallet.hotkey)):
        if not word or "/" in word or word in {".", ".."}:
            raise UsageError(f"{flag} {word!r}: not the name of a wallet or hotkey")
    return BittensorWallet(wallet.name, wallet.hotkey, str(config.path_of("--wallet.path", wallet.path)))


def _missing(wallet: config.Wallet, opened: "Wallet") -> str:
    has_coldkey = opened.coldkey_file.exists_on_device() or opened.coldkeypub_file.exists_on_device()
    command = _command("new-hotkey" if has_coldkey else "create", wallet)
    return f"no hotkey at {opened.hotkey_file.path}; create it with: {command}"


def _command(verb: str, wallet: config.Wallet) -> str:
    words = ("--wallet", wallet.name, "--wallet-hotkey", wallet.hotkey, "--wallet-path", wallet.path)
    return f"btcli wallet {verb} {' '.join(word if word.startswith('~') else shlex.quote(word) for word in words)}"


def _create(wallet: config.Wallet, opened: "Wallet") -> bool:
    """Make the hotkey; False where another process of this machine has made it in the same moment."""
    where = Path(opened.hotkey_file.path)
    try:
        with _alone(where.parent):
            if opened.hotkey_file.exists_on_device():
                return False
            if opened.hotkeypub_file.exists_on_device():
                raise UsageError(
                    f"{opened.hotkeypub_file.path} is there but its secret file {where} is not; "
                    f"bring it back with: {_command('regen-hotkey', wallet)}"
                )
            try:
                opened.create_new_hotkey(suppress=True)
            except FileExistsError:  # by another one, where files cannot be locked
                return False
            return True
    except OSError as error:
        raise UsageError(f"cannot make hotkey {wallet.hotkey} in {where}: {error.strerror or error}") from error


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Alone in making keys in a folder, among all processes: two at once write into one file before it is renamed."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _unlocked(opened: "Wallet") -> "Keypair":
    from bittensor.sp_core import CRYPTO_SR25519, KeyfileError

    file = opened.hotkey_file
    try:
        if file.is_encrypted():
            raise UsageError(f"hotkey {file.path} is encrypted; it signs every message, so it must be a plain keyfile")
        keypair = file.get_keypair()
        keypair.sign(b"")
    except (KeyfileError, OSError, ValueError) as error:
        raise UsageError(f"hotkey {file.path} cannot be used: {error}") from error
    if keypair.crypto_type != CRYPTO_SR25519:
        raise UsageError(f"hotkey {file.path} is not an sr25519 key; signatures of this protocol are sr25519")
    return keypair
