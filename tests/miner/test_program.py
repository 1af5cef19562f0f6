"""`fedgpt2 miner` as a program: what is checked before the port opens, in order, and how it ends."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedgpt2.config import Axon, DataSource, Gradient, MinerConfig, MinerRun, Wallet
from fedgpt2.errors import CorpusError, DeviceError, PortInUseError, UsageError
from fedgpt2.event_loop import Stop
from fedgpt2.miner.program import run_miner
from fedgpt2.model import hardware

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Settings that start, with a wallet folder of their own; the process's own arithmetic stays as it is."""
    prepare = hardware.prepare

    def prepare_others(device, threads):
        return torch.device("cpu") if device == "cpu" else prepare(device, threads)

    monkeypatch.setattr(hardware, "prepare", prepare_others)
    return MinerConfig(
        wallet=Wallet(path=str(tmp_path / "wallets")),
        axon=Axon(port=0),
        data=DataSource(source="sample"),
        run=MinerRun(dir=str(tmp_path / "miner")),
        device="cpu",
    )


async def refused(config, error, match):
    said = []
    with pytest.raises(error, match=match) as refusal:
        await run_miner(config, Stop(), said.append)
    assert "\n" not in str(refusal.value)
    assert not any(line.startswith("listening") for line in said)


async def test_what_is_wrong_is_said_in_order(config, tmp_path):
    """Each fault hides the next: device, pins, strategy, text, wallet, port."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        all_wrong = replace(
            config,
            device="cuda:99",
            axon=Axon(host="0.0.0.0", port=port),
            gradient=Gradient(strategy="guess"),
            data=DataSource(source="refinedweb:no"),
            wallet=replace(config.wallet, hotkey="../escape"),
        )
        await refused(all_wrong, DeviceError, "--device cpu")
        better = replace(all_wrong, device="cpu")
        await refused(better, UsageError, r"--axon\.validators")
        better = replace(better, axon=Axon(host="127.0.0.1", port=port, validators=("nobody",)))
        await refused(better, UsageError, "not a hotkey")
        better = replace(better, axon=Axon(host="127.0.0.1", port=port))
        await refused(better, UsageError, r"--gradient\.strategy")
        better = replace(better, gradient=Gradient())
        await refused(better, UsageError, r"--data\.source")
        better = replace(better, data=DataSource(source=f"text:{tmp_path}/none/*"))
        await refused(better, CorpusError, str(tmp_path))
        better = replace(better, data=DataSource(source="sample"))
        await refused(better, UsageError, r"--wallet\.hotkey")
        better = replace(better, wallet=config.wallet)
        await refused(better, PortInUseError, str(port))


@pytest.mark.parametrize(("precision", "told"), [("bf16", True), ("fp32", False), ("auto", False)])
async def test_bf16_that_is_emulated_is_told_of(config, precision, told, monkeypatch):
    monkeypatch.setattr("fedgpt2.model.hardware.native_precision", lambda _device: "fp32")
    said, stop = [], Stop()
    stop.set()
    await run_miner(replace(config, device="cpu", gradient=Gradient(precision=precision)), stop, said.append)
    assert any("--gradient.precision fp32" in line for line in said) == told


async def test_off_loopback_no_hotkey_is_made(config):
    from bittensor.sp_core import Keypair

    validator = Keypair.create_from_uri("//Validator").ss58_address
    away = replace(config, axon=Axon(host="0.0.0.0", port=0, validators=(validator,)))
    await refused(away, UsageError, "btcli wallet create")


def start(tmp_path, *flags):
    """The miner as a process of its own."""
    command = [sys.executable, str(ROOT / "src" / "miner.py"), "--device", "cpu", "--data.source", "sample"]
    command += ["--axon.port", "0", "--wallet.path", str(tmp_path / "wallets"), "--run.dir", str(tmp_path / "runs")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def test_the_program_makes_its_key_listens_and_ends_on_ctrl_c(tmp_path):
    process = start(tmp_path)
    try:
        made = process.stdout.readline()
        listening = process.stdout.readline()
        begin = time.monotonic()
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=10)
    finally:
        process.kill()
        process.communicate()
    assert made.startswith("made hotkey")
    named = re.fullmatch(r"listening on 127\.0\.0\.1:\d+ as (5\w{47})\n", listening)
    assert named
    assert (process.returncode, out, error) == (0, "stopped\n", "")
    assert time.monotonic() - begin < 5
    assert (tmp_path / "runs" / named[1] / "journal.sqlite").exists()
    mnemonics = (tmp_path / "wallets" / "default" / "hotkeys" / "default").read_text()
    assert "secretPhrase" in mnemonics
    assert "phrase" not in made + listening
