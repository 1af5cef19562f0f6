"""Wallets: opened as they are, made only when allowed, never a mnemonic on the terminal."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from bittensor.sp_core import CRYPTO_ED25519
from bittensor.wallet import Wallet as BittensorWallet

from fedgpt2.config import Wallet
from fedgpt2.errors import UsageError
from fedgpt2.identity.keys import verify
from fedgpt2.identity.wallet import open_hotkey


@pytest.fixture
def wallet(tmp_path) -> Wallet:
    return Wallet(name="miners", hotkey="M1", path=str(tmp_path))


def keyfile(wallet) -> Path:
    return Path(wallet.path) / wallet.name / "hotkeys" / wallet.hotkey


def refused(wallet, create=False) -> str:
    with pytest.raises(UsageError) as caught:
        open_hotkey(wallet, create=create, notice=lambda _: None)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_hotkey_names_the_command_that_makes_it(wallet):
    command = f"btcli wallet create --wallet miners --wallet-hotkey M1 --wallet-path {wallet.path}"
    assert command in refused(wallet)
    assert not Path(wallet.path, "miners").exists()


def test_where_the_coldkey_is_there_only_a_hotkey_is_to_be_made(wallet):
    BittensorWallet("miners", "M1", wallet.path).create_new_coldkey(use_password=False, suppress=True)
    assert "btcli wallet new-hotkey --wallet miners" in refused(wallet)


def test_a_hotkey_is_made_with_one_notice_and_no_mnemonic(wallet, capfd):
    notices: list[str] = []
    keypair = open_hotkey(wallet, create=True, notice=notices.append)
    assert verify(keypair.ss58_address, b"m", keypair.sign(b"m"))
    assert len(notices) == 1
    assert "M1" in notices[0]
    assert capfd.readouterr() == ("", "")
    assert sorted(p.name for p in Path(wallet.path, "miners").rglob("*")) == ["M1", "M1pub.txt", "hotkeys"]
    assert keyfile(wallet).stat().st_mode & 0o077 == 0


def test_an_existing_hotkey_is_opened_without_notice(wallet):
    made = open_hotkey(wallet, create=True, notice=lambda _: None)
    opened = open_hotkey(wallet, create=True, notice=pytest.fail)
    assert opened.ss58_address == made.ss58_address
    assert BittensorWallet("miners", "M1", wallet.path).hotkey.ss58_address == made.ss58_address


def test_an_encrypted_hotkey_is_refused(wallet):
    theirs = BittensorWallet("miners", "M1", wallet.path)
    theirs.create_new_hotkey(suppress=True, hotkey_password="known")  # noqa: S106
    assert "encrypted" in refused(wallet)


@pytest.mark.parametrize(
    "content", [b"", b"not a key", b"{}", b"\xff\xfe", b'{"secretPhrase": "one two three"}', b'{"ss58Address": "5x"}']
)
def test_a_damaged_hotkey_is_refused(wallet, content):
    keyfile(wallet).parent.mkdir(parents=True)
    keyfile(wallet).write_bytes(content)
    assert "cannot be used" in refused(wallet, create=True)


def test_an_unreadable_hotkey_is_refused(wallet):
    keyfile(wallet).mkdir(parents=True)
    assert "cannot be used" in refused(wallet, create=True)


def test_a_public_key_alone_is_refused(wallet):
    open_hotkey(wallet, create=True, notice=lambda _: None)
    public = keyfile(wallet).with_name("M1pub.txt")
    keyfile(wallet).write_bytes(public.read_bytes())
    assert "cannot be used" in refused(wallet)
    keyfile(wallet).unlink()
    assert "secret file" in refused(wallet, create=True)
    assert "btcli wallet regen-hotkey" in refused(wallet, create=True)


def test_another_signature_scheme_is_refused(wallet):
    theirs = BittensorWallet("miners", "M1", wallet.path)
    theirs.create_new_hotkey(suppress=True, crypto_type=CRYPTO_ED25519)
    assert "sr25519" in refused(wallet)


@pytest.mark.parametrize("change", [{"name": "../x"}, {"hotkey": "a/b"}, {"name": ""}, {"hotkey": ".."}])
def test_names_are_not_paths(wallet, change):
    assert "not the name" in refused(Wallet(**{"name": "n", "hotkey": "h", "path": wallet.path} | change), create=True)


def test_a_folder_that_cannot_be_made_is_said_in_one_line(wallet):
    Path(wallet.path, "miners").write_text("in the way")
    assert "cannot make hotkey" in refused(wallet, create=True)


def test_two_processes_that_make_the_same_hotkey_agree(wallet, monkeypatch):
    theirs = BittensorWallet("miners", "M1", wallet.path)

    def first(self, **_):
        monkeypatch.undo()
        theirs.create_new_hotkey(suppress=True)
        raise FileExistsError

    monkeypatch.setattr(BittensorWallet, "create_new_hotkey", first)
    opened = open_hotkey(wallet, create=True, notice=lambda _: None)
    assert opened.ss58_address == theirs.hotkey.ss58_address


def test_of_two_that_make_a_hotkey_at_once_one_makes_it(wallet, monkeypatch):
    made, notices, make = [], [], BittensorWallet.create_new_hotkey

    def slow(self, **settings):
        made.append(self)
        time.sleep(0.3)
        return make(self, **settings)

    monkeypatch.setattr(BittensorWallet, "create_new_hotkey", slow)
    with ThreadPoolExecutor(2) as pool:
        opened = list(pool.map(lambda _: open_hotkey(wallet, create=True, notice=notices.append), range(2)))
    assert opened[0].ss58_address == opened[1].ss58_address
    assert (len(made), len(notices)) == (1, 1)


def test_importing_identity_does_not_import_bittensor_or_torch():
    code = (
        "import sys, fedgpt2.identity.wallet, fedgpt2.identity.signing, fedgpt2.identity.auth, fedgpt2.identity.pins\n"
        "sys.exit(bool({'bittensor', 'torch'} & set(sys.modules)))"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], check=False, env=env).returncode == 0
