"""Devices that exist and do not; freed memory that stays."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fedgpt2
from fedgpt2.errors import DeviceError, UsageError
from fedgpt2.model import hardware

FAULTS = """
import resource, threading, torch
from fedgpt2.config import PRESETS
from fedgpt2.model.gpt2 import GPT2, initialise
from fedgpt2.model.hardware import keep_freed_memory
from fedgpt2.model.loss import window_loss

assert keep_freed_memory()
torch.set_num_threads(1)
weights = initialise(PRESETS["tiny"], 0)
model = GPT2(PRESETS["tiny"]).bind(weights, weights.empty_like())
tokens = torch.zeros(8, 65, dtype=torch.long)

def compute():
    for _ in range(6):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        window_loss(model, tokens, divisor=512, precision="fp32").backward()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

thread = threading.Thread(target=compute)
thread.start()
thread.join()
"""


def test_cpu_resolves_everywhere():
    assert hardware.resolve("cpu") == torch.device("cpu")


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:7"])
def test_a_missing_device_names_the_way_out(device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="--device cpu") as caught:
        hardware.resolve(device)
    assert device in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_devices_there_are_resolve(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert hardware.resolve("cuda") == torch.device("cuda", 0)
    assert hardware.resolve("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(DeviceError, match="has 2 CUDA devices; use --device cpu"):
        hardware.resolve("cuda:2")


@pytest.mark.parametrize("device", ["", "gpu", "cpu:0", "cuda:", "cuda:x", "cuda:-1", "mps", "cuda:²"])
def test_another_word_is_bad_usage(device):
    with pytest.raises(UsageError, match="one of cpu, cuda, cuda:N"):
        hardware.resolve(device)


def test_a_big_endian_machine_is_told_so(monkeypatch):
    monkeypatch.setattr(sys, "byteorder", "big")
    with pytest.raises(DeviceError, match="big-endian"):
        hardware.prepare("cpu")


def test_unknown_precision_is_bad_usage():
    with pytest.raises(UsageError, match="auto, bf16, fp32"):
        hardware.arithmetic(torch.device("cpu"), "fp8")


@pytest.mark.parametrize(
    ("has", "library", "chosen"),
    [
        ({"avx2": True}, True, "fp32"),
        ({"avx512_f": True, "avx512_bf16": False}, True, "fp32"),
        ({"avx512_bf16": True}, True, "bf16"),
        ({"amx_bf16": True}, True, "bf16"),
        ({"neon": True, "bf16": True}, True, "bf16"),
        ({"neon": True, "bf16": True}, False, "fp32"),
    ],
)
def test_bf16_is_for_cpus_with_instructions_for_it(has, library, chosen, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: library)
    assert hardware.native_precision(torch.device("cpu")) == chosen


@pytest.mark.parametrize(("native", "chosen"), [(True, "bf16"), (False, "fp32")])
def test_bf16_is_for_gpus_that_do_not_emulate_it(native, chosen, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native or including_emulation)
    assert hardware.native_precision(torch.device("cuda:0")) == chosen


def test_threads_are_those_asked_for():
    assert hardware.set_threads(1) == 1


def test_fp32_stays_fp32_on_its_faster_route():
    switch = torch.backends.mkldnn.matmul
    before = switch.fp32_precision
    try:
        hardware.route_fp32()
        a = torch.randn(300, 300, generator=torch.Generator().manual_seed(1))
        error = (a @ a).double() - a.double() @ a.double()
        assert error.abs().max() < 1e-4
    finally:
        switch.fp32_precision = before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_a_thread_computes_in_memory_it_freed_before():
    done = subprocess.run(
        [sys.executable, "-c", FAULTS],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": str(Path(fedgpt2.__file__).parents[1])},
    )
    faults = [int(line) for line in done.stdout.split()]
    assert faults[0] > 25_000  # the logits of 512 tokens alone are 25,129 pages
    assert min(faults[-3:]) < 500  # rarely a hole is too small once more, and the heap grows again


def test_physical_memory_is_the_machines_or_the_containers(monkeypatch, tmp_path):
    assert 1 << 28 < hardware.physical_memory() < 1 << 50
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(hardware, "_MEMORY_LIMITS", (tmp_path / "none", limit))
    limit.write_text("max\n")
    whole = hardware.physical_memory()
    limit.write_text("100000000\n")
    assert hardware.physical_memory() == 100_000_000
    monkeypatch.setattr("os.sysconf_names", {})
    limit.write_text("max\n")
    assert hardware.physical_memory() == 1 << 62 > whole
