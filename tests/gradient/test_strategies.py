"""Every registered strategy gives the mean gradient; exact ones are told when to stop."""

import threading

import numpy as np
import pytest
import torch

from fedgpt2.config import Gradient
from fedgpt2.errors import Reason, Refused, UsageError
from fedgpt2.gradient.exact import CPU_TOKENS, Exact
from fedgpt2.gradient.registry import STRATEGIES, build
from fedgpt2.gradient.strategy import Result
from fedgpt2.model.gpt2 import GPT2, initialise
from fedgpt2.types import ModelShape

SHAPE = ModelShape(n_layer=2, n_head=2, n_embd=16, block_size=16, vocab_size=67)
CPU = torch.device("cpu")
WINDOWS = np.random.default_rng(0).integers(0, 67, (7, 13)).astype(np.uint16)
EXAMPLE = "tests.gradient.plugins:example"


@pytest.fixture
def model():
    return GPT2(SHAPE, initialise(SHAPE, 1))


def compute(model, strategy="exact", windows=WINDOWS, stop=None, **settings):
    out = model.weights.empty_like()
    out.flat.fill_(9.0)
    settings = {"precision": "fp32", "plugin": EXAMPLE if strategy == "plugin" else "", **settings}
    compute = build(Gradient(strategy=strategy, **settings), CPU)
    return compute(model, windows, out=out, stop=stop or threading.Event()), out


def dense(model, windows=WINDOWS):
    grads = model.weights.empty_like()
    model.bind(model.weights, grads)
    tokens = torch.from_numpy(windows.astype(np.int64))
    logits = model.logits(model(tokens[:, :-1]))
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    model.bind(model.weights)
    return Result(float(loss.detach()), tokens[:, 1:].numel()), grads


@pytest.mark.parametrize("strategy", STRATEGIES.names)
@pytest.mark.parametrize("dtype", [np.uint16, np.int64])
def test_every_strategy_gives_the_mean_gradient(model, strategy, dtype):
    expected, gradient = dense(model)
    before = model.weights.clone()
    result, out = compute(model, strategy, WINDOWS.astype(dtype))
    assert result.tokens == expected.tokens == 7 * 12
    assert result.loss == pytest.approx(expected.loss, rel=1e-6)
    torch.testing.assert_close(out.flat, gradient.flat, rtol=1e-4, atol=1e-7)
    assert torch.equal(model.weights.flat, before.flat)


@pytest.mark.parametrize("strategy", STRATEGIES.names)
def test_every_strategy_heeds_a_stop(model, strategy):
    stop = threading.Event()
    stop.set()
    with pytest.raises(Refused) as caught:
        compute(model, strategy, stop=stop)
    assert caught.value.reason is Reason.CANCELLED


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 7, 50])
def test_micro_batches_add_up_to_one_batch(model, micro_batch):
    expected, gradient = dense(model)
    result, out = compute(model, micro_batch=micro_batch)
    assert result.loss == pytest.approx(expected.loss, rel=1e-6)
    torch.testing.assert_close(out.flat, gradient.flat, rtol=1e-4, atol=1e-7)


def test_exact_is_deterministic_and_leaves_the_model_unbound(model):
    _, first = compute(model, precision="bf16")
    _, second = compute(model, precision="bf16")
    assert torch.equal(first.flat, second.flat)
    assert model.grads is None


def test_a_stop_ends_it_within_a_block(model, monkeypatch):
    """The flag is set while the first block runs; nothing after that block is computed."""
    stop, ran = threading.Event(), []
    for index, block in enumerate(model.h):
        block.register_forward_hook(lambda *_, index=index: (ran.append(index), stop.set())[0])
    with pytest.raises(Refused):
        compute(model, stop=stop)
    assert ran == [0]
    assert model.grads is None


def test_a_stop_ends_the_backward_pass_too(model):
    stop = threading.Event()
    model.ln_f.register_full_backward_hook(lambda *_: stop.set())
    with pytest.raises(Refused) as caught:
        compute(model, stop=stop)
    assert caught.value.reason is Reason.CANCELLED


def test_no_windows_no_gradient(model):
    with pytest.raises(Refused) as caught:
        compute(model, windows=WINDOWS[:0])
    assert caught.value.reason is Reason.COMPUTE_FAILED


def test_long_windows_make_small_micro_batches_on_a_cpu():
    exact = Exact(8, "bf16")
    assert exact._windows_at_once(CPU, 128) == 8
    assert exact._windows_at_once(CPU, 1024) == CPU_TOKENS // 1024
    assert exact._windows_at_once(CPU, 4096) == 1
    assert exact._windows_at_once(torch.device("meta"), 4096) == 8


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"strategy": "local"}, "exact, plugin"),
        ({"precision": "fp8"}, "auto, bf16, fp32"),
        ({"micro_batch": 0}, "at least 1"),
        ({"plugin": "mine:f"}, "--gradient.plugin mine:f: not used without --gradient.strategy plugin"),
        ({"strategy": "plugin"}, "package.module:object"),
        ({"strategy": "plugin", "plugin": "no_such_module_here:f"}, "ModuleNotFoundError"),
        ({"strategy": "plugin", "plugin": "tests.gradient.plugins:absent"}, "has no absent"),
        ({"strategy": "plugin", "plugin": "tests.gradient.plugins:NUMBER"}, "not a function"),
    ],
)
def test_bad_settings_are_one_line(settings, names):
    with pytest.raises(UsageError, match=names) as caught:
        build(Gradient(**settings), CPU)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["1 +", "undefined_name", "raise ValueError('first\\nsecond')", "exit()"])
def test_a_plugin_that_does_not_load_is_bad_usage(source, tmp_path, monkeypatch):
    name = f"broken_{abs(hash(source))}"
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        build(Gradient(strategy="plugin", plugin=f"{name}:f"), CPU)
    assert "\n" not in str(caught.value)


def test_a_plugin_of_the_current_folder_is_found(tmp_path, monkeypatch):
    (tmp_path / "plugin_of_this_folder.py").write_text("def f(weights, tokens, shape): ...\n")
    monkeypatch.chdir(tmp_path)
    assert build(Gradient(strategy="plugin", plugin="plugin_of_this_folder:f"), CPU)


@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("raises", "ValueError: no"),
        ("raises_its_own", "OwnError: no such thing"),
        ("raises_without_a_word", r"Mute: <exception str\(\) failed>"),
        ("answers_lazily", "OwnError: not there after all"),
        ("exits", "SystemExit: 3"),
        ("returns_nothing", "no pair"),
        ("forgets_one", "missing or unknown gradient 'h.0.attn.c_attn.bias'"),
        ("wrong_shape", "not a float array of shape"),
        ("wrong_kind", "not a float array of shape"),
        ("not_finite", "not finite"),
        ("loss_not_finite", "loss is nan"),
        ("writes_weights", "read-only"),
    ],
)
def test_a_plugin_that_fails_is_a_refusal_with_one_line(model, function, says):
    before = model.weights.clone()
    with pytest.raises(Refused, match=says) as caught:
        compute(model, "plugin", plugin=f"tests.gradient.plugins:{function}")
    assert caught.value.reason is Reason.COMPUTE_FAILED
    assert "\n" not in str(caught.value)
    assert torch.equal(model.weights.flat, before.flat)


def test_a_plugin_may_answer_in_float64_and_any_memory_order(model):
    _, expected = compute(model, "plugin")
    _, out = compute(model, "plugin", plugin="tests.gradient.plugins:wide")
    assert torch.equal(out.flat, expected.flat)
