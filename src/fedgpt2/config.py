"""Every setting, its default and what it means: one frozen dataclass a group, no I/O.

A field's metadata carries the text of `--help` and of docs/settings.md; a test holds them together.
Where a setting comes from (flag > environment > file > default) is the business of `fedgpt2.cli`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedgpt2.errors import UsageError
from fedgpt2.types import ModelShape

__all__ = [
    "MOST_RECENT",
    "PRESETS",
    "Aggregation",
    "Axon",
    "Axons",
    "Checkpoint",
    "Codec",
    "Data",
    "Gradient",
    "Limits",
    "MinerConfig",
    "Model",
    "Optimizer",
    "Ranking",
    "Round",
    "Run",
    "SimulationConfig",
    "ValidatorConfig",
    "Wallet",
    "path_of",
    "setting",
]

PRESETS: Mapping[str, ModelShape] = {
    "tiny": ModelShape(n_layer=2, n_head=2, n_embd=16, block_size=64),
    "nano": ModelShape(n_layer=4, n_head=4, n_embd=128, block_size=128),
    "small": ModelShape(n_layer=12, n_head=12, n_embd=768, block_size=1024),
    "medium": ModelShape(n_layer=24, n_head=16, n_embd=1024, block_size=1024),
    "large": ModelShape(n_layer=36, n_head=20, n_embd=1280, block_size=1024),
    "xl": ModelShape(n_layer=48, n_head=25, n_embd=1600, block_size=1024),
}


def setting(default: Any, text: str, **more: float | str) -> Any:  # noqa: ANN401  (the field's annotation types it)
    """A dataclass field with its help text.

    Bounds (`least`, `most`) are checked where the command line is read; `flag` is its name there, if another.
    """
    return field(default=default, metadata={"help": text, **more})


def path_of(flag: str, text: str) -> Path:
    """The path that a setting names, `~` written out. Raises UsageError for an empty one and an unknown home directory.

    Empty is a variable of a shell that was not set, and would be the current folder.
    """
    if not text:
        raise UsageError(f"{flag} is empty: name a path, or leave it out")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{flag} {text}: no such home directory") from error


@dataclass(frozen=True)
class Wallet:
    """The Bittensor wallet whose hotkey signs every message."""

    name: str = setting("default", "wallet (coldkey) name")
    hotkey: str = setting("default", "hotkey name inside the wallet")
    path: str = setting("~/.bittensor/wallets", "folder that holds the wallets")


@dataclass(frozen=True)
class Axon:
    """Where a miner listens, and to whom."""

    port: int = setting(8091, "port the miner listens on; 0 takes a free one", least=0, most=65535)
    host: str = setting("127.0.0.1", "address to bind; anything but loopback requires --axon.validators")
    validators: tuple[str, ...] = setting((), "hotkeys of the validators this miner works for; empty: any, on loopback")
    proxies: bool = setting(False, "accept requests that came through a proxy (Forwarded, X-Forwarded-*, Via)")


@dataclass(frozen=True)
class Axons:
    """The miners a validator works with."""

    addresses: tuple[str, ...] = setting((), "miners: PORT, HOST:PORT or HOTKEY@HOST:PORT")
    accept_new: bool = setting(False, "accept another hotkey on an axon whose first key is on record")
    wait_seconds: float = setting(60.0, "how long to wait for a miner before giving up", least=0)


@dataclass(frozen=True)
class Model:
    """Which GPT-2."""

    preset: str = setting("small", "tiny, nano, small (124M), medium, large or xl")

    @property
    def shape(self) -> ModelShape:
        """Shape of the preset. Raises UsageError for a name that is none."""
        if self.preset not in PRESETS:
            raise UsageError(f"--model.preset {self.preset}: no such preset; one of {', '.join(PRESETS)}")
        return PRESETS[self.preset]


@dataclass(frozen=True)
class Data:
    """The text, and how it is dealt out."""

    source: str = setting("refinedweb", "refinedweb, sample (embedded), parquet:GLOB or text:GLOB")
    revision: str = setting("", "commit of a hub source; empty: RefinedWeb's pinned one, elsewhere what main is now")
    column: str = setting("content", "column of parquet:GLOB that holds the text")
    cache: str = setting("~/.cache/fedgpt2", "folder for tokenised pages")
    cache_gb: float = setting(20.0, "size of that folder (GB); the least recently used pages go first", least=0.1)
    seq_len: int = setting(0, "tokens a training window; 0: the model's block size", least=0)
    windows: int = setting(8, "windows each miner is assigned a round", least=1)
    span: int = setting(
        0,
        "rounds over which a page is used up, one slice of its windows a round; 0: what the size of pages asks for",
        least=0,
    )
    max_slots: int = setting(16, "miners that can be given disjoint pages at once", least=1, most=2**20)
    max_pages: int = setting(8, "most pages a miner is assigned a round", least=1, most=4096)


@dataclass(frozen=True)
class Round:
    """The clock of a round."""

    deadline: float = setting(600.0, "seconds a miner has for one round, transfers included", least=0.1)
    quorum: float = setting(
        1.0,
        "share of the miners whose answers end the wait; never fewer than the rule needs",
        least=0,
        most=1,
    )
    min_miners: int = setting(1, "miners that must be present before a round starts", least=1)


@dataclass(frozen=True)
class Gradient:
    """How this miner computes."""

    strategy: str = setting("exact", "exact (autograd over the assigned windows) or plugin")
    plugin: str = setting("", "package.module:function for strategy plugin, as examples/plugin_gradient.py")
    micro_batch: int = setting(8, "windows a forward and backward pass holds at once", least=1)
    precision: str = setting(
        "auto", "arithmetic: bf16 (autocast), fp32, or auto: bf16 where the device has instructions for it"
    )


@dataclass(frozen=True)
class Codec:
    """How tensors travel."""

    state: str = setting("fp32", "codec of the weights sent to miners: fp32 or bf16")
    gradient: str = setting("fp32", "codec of the gradients sent back: fp32 or bf16")


@dataclass(frozen=True)
class Optimizer:
    """The only optimizer; it lives on the validator."""

    name: str = setting("adamw", "adamw, sgd, or package.module:object (docs/simulation.md)")
    lr: float = setting(1e-3, "peak learning rate", least=0)
    min_lr: float = setting(1e-4, "learning rate at the end of the cosine", least=0)
    warmup: int = setting(10, "rounds of linear warm-up", least=0)
    horizon: int = setting(
        0, "rounds after which the cosine reaches min_lr; 0: --rounds, or constant without it", least=0
    )
    beta1: float = setting(0.9, "decay of Adam's first moment", least=0, most=0.9999)
    beta2: float = setting(0.95, "decay of Adam's second moment", least=0, most=0.999999)
    eps: float = setting(1e-8, "Adam's epsilon", least=0)
    weight_decay: float = setting(0.1, "decoupled weight decay of matrices (biases and gains have none)", least=0)
    clip: float = setting(1.0, "largest norm of the aggregate; 0: no clipping", least=0)


@dataclass(frozen=True)
class Aggregation:
    """How admitted gradients become one."""

    rule: str = setting(
        "default",
        "aggregation rule: default, mean, another of docs/aggregation.md, or package.module:object",
    )
    gate: bool = setting(
        True, "take a step only if it does not raise the loss on held-out windows; else a part of it, or none"
    )
    tolerance: float = setting(0.05, "how far a step may raise that loss, nats a token", least=0)


MOST_RECENT = 16  # aggregates that a checkpoint may hold beside the optimizer


@dataclass(frozen=True)
class Ranking:
    """How miners are ranked and paid. Each round's evidence names the settings that its ratings were made with."""

    tokens: int = setting(
        2048, "held-out tokens that the gradient behind all credits is taken on; 0: nobody is scored", least=0
    )
    sample: int = setting(4, "miners a round whose gradients are tried out, whoever least is known of", least=0)
    trial: int = setting(
        512,
        "of the held-out tokens, those on which a step along each of these is tried, for the true loss before and "
        "after it; 0: none",
        least=0,
    )
    audit: int = setting(512, "tokens of its own text on which each of these is tried; 0: none", least=0)
    score: str = setting(
        "proven",
        "what a round compares: proven (a third of the whole effect and two of what is added to what is free, as far "
        "as the miner is known to add), projected (what is added), raw (the whole effect), leave_one_out, or losses "
        "(of the sampled alone)",
    )
    basis: str = setting(
        "aggregate+moment", "what counts as free: aggregate (recent ones), moment, mean, update, score, by +; or none"
    )
    recent: int = setting(
        2, "steps for which an aggregate counts as free; the validator keeps as many", least=0, most=MOST_RECENT
    )
    blend: float = setting(0.0, "share of the raw credit in the scores projected and leave_one_out", least=0, most=1)
    own: float = setting(
        0.01,
        "part of its length that a contribution must have outside of what is free, or it is a replay",
        least=0,
        most=1,
    )
    smooth: int = setting(
        0, "rounds over which a miner's scores are averaged before they are compared; 0: none", least=0
    )
    mu: float = setting(25.0, "rating of a miner nothing is known of", least=0)
    sigma: float = setting(25 / 3, "uncertainty of that rating", least=1e-6)
    beta: float = setting(25 / 6, "how much luck there is in one round, in units of rating", least=1e-6)
    tau: float = setting(0.3, "how far a miner's worth may drift in a round, in units of rating", least=0)
    caution: float = setting(3.0, "standard deviations taken off a rating before anything is paid on it", least=0)
    memory: int = setting(
        20,
        "rounds over which reliability, cluster share, presence and what is proved are averaged",
        least=1,
    )
    clean_rounds: int = setting(5, "rounds with a gradient of its own after which a newcomer is paid", least=0)
    waive: float = setting(
        0.5, "share of failed miners above which a round was bad as a whole and nobody is blamed", least=0, most=1
    )
    power: float = setting(2.0, "pay grows with this power of the score", least=1, most=8)


@dataclass(frozen=True)
class Checkpoint:
    """What is kept on disk."""

    every: int = setting(1, "rounds between checkpoints; a restart goes on from the last one", least=1)
    keep: int = setting(2, "checkpoints kept", least=1)


@dataclass(frozen=True)
class Run:
    """One run and its folder."""

    dir: str = setting("runs/default", "run directory; one that holds a run is resumed")
    seed: int = setting(
        1337, "seed of the weights, the manifest and everything drawn at random", least=0, most=2**53 - 1
    )
    threads: int = setting(0, "threads of tensor arithmetic; 0: one a core", least=0, most=1024)
    eval_every: int = setting(10, "rounds between measurements of the held-out loss", least=1)
    eval_windows: int = setting(16, "held-out windows measured", least=1)
    score_windows: int = setting(4, "windows of the score pool on which the validator measures train_loss", least=1)
    plain: bool = setting(False, "plain lines instead of the live console")


@dataclass(frozen=True)
class Limits:
    """What a peer can make this process spend."""

    message_bytes: int = setting(1 << 20, "largest JSON message", least=4096)
    header_bytes: int = setting(1 << 20, "largest safetensors header", least=4096)
    model_parameters: int = setting(2_000_000_000, "largest model, in parameters, that a miner takes on", least=1)
    gradient_norm: float = setting(1e3, "largest norm of an admitted gradient", least=0, most=1e36)
    request_seconds: float = setting(10.0, "time to answer one control request", least=0.1)
    progress_seconds: float = setting(30.0, "time a transfer may stand still", least=0.1)


@dataclass(frozen=True)
class OnlyModel:
    """Which GPT-2 a miner works for."""

    preset: str = setting("", "only this one: tiny, nano, small (124M), medium, large or xl; empty: whichever is asked")

    @property
    def shape(self) -> ModelShape | None:
        """Shape of the preset; None for any. Raises UsageError for a name that is none."""
        return Model(self.preset).shape if self.preset else None


@dataclass(frozen=True)
class MinerConfig:
    """Settings of `fedgpt2 miner`."""

    wallet: Wallet = Wallet()
    axon: Axon = Axon()
    model: OnlyModel = OnlyModel()
    data: Data = Data()
    gradient: Gradient = Gradient()
    limits: Limits = Limits()
    run: Run = Run(dir="~/.fedgpt2/miner")
    device: str = setting("cuda:0", "where tensors live: cpu, cuda or cuda:N")


@dataclass(frozen=True)
class ValidatorConfig:
    """Settings of `fedgpt2 validator`."""

    wallet: Wallet = Wallet()
    axons: Axons = Axons()
    model: Model = Model()
    data: Data = Data()
    round: Round = Round()
    codec: Codec = Codec()
    optimizer: Optimizer = Optimizer()
    aggregation: Aggregation = Aggregation()
    ranking: Ranking = Ranking()
    checkpoint: Checkpoint = Checkpoint()
    limits: Limits = Limits()
    run: Run = Run()
    device: str = setting("cuda:0", "where tensors live: cpu, cuda or cuda:N")
    rounds: int = setting(0, "rounds to train; 0: until stopped", least=0)


@dataclass(frozen=True)
class SimulationConfig:
    """Settings of `fedgpt2 simulate`: a validator's, but for what only sockets and wallets need."""

    miners: int = setting(8, "miners that take part, hostile ones included", least=1)
    attack: str = setting(
        "none",
        "what hostile miners send: none, absent, one of docs/simulation.md, or package.module:function",
    )
    byzantine: int = setting(0, "how many of the miners are hostile; which ones is drawn by --run.seed", least=0)
    rounds: int = setting(30, "rounds to train", least=1)
    device: str = setting("cpu", "where tensors live: cpu, cuda or cuda:N")
    model: Model = Model(preset="nano")
    data: Data = Data(source="sample", windows=2)
    round: Round = Round()
    gradient: Gradient = Gradient()
    codec: Codec = Codec()
    optimizer: Optimizer = Optimizer(lr=3e-3, min_lr=3e-4, warmup=5)
    aggregation: Aggregation = Aggregation()
    ranking: Ranking = Ranking()
    checkpoint: Checkpoint = Checkpoint(every=100)
    limits: Limits = Limits()
    run: Run = Run(dir="", eval_every=5, eval_windows=32)
