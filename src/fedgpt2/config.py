"""Every setting with its default and its meaning: one frozen dataclass per group, no I/O.

A field's metadata holds the text of `--help` and docs/settings.md. `fedgpt2.cli` reads settings from flags, the
environment and files.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedgpt2.errors import UsageError
from fedgpt2.types import ModelShape

__all__ = [
    "PRESETS",
    "Aggregation",
    "Axon",
    "Axons",
    "Checkpoint",
    "Codec",
    "Data",
    "DataSource",
    "Gradient",
    "Limits",
    "MinerConfig",
    "MinerLimits",
    "MinerModel",
    "MinerRun",
    "Model",
    "Optimizer",
    "PeerLimits",
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

_DEVICE = "device of the tensors: cpu, cuda or cuda:N"


def setting(default: Any, text: str, *, common: bool = False, note: str = "", **more: float | str) -> Any:  # noqa: ANN401
    """A dataclass field with its help text: one phrase of at most 90 characters.

    `--help` shows the `common` settings, `--help-all` the rest; `note` appears in docs/settings.md only. The command
    line checks the bounds (`least`, `most`); `flag` is the name of the flag, if it differs from the field's.
    """
    return field(default=default, metadata={"help": text, "common": common, "note": note, **more})


def path_of(flag: str, text: str) -> Path:
    """Path of a setting, with `~` expanded. Raises UsageError for an empty path and an unknown home directory.

    An empty path usually comes from an unset shell variable; it would mean the current folder.
    """
    if not text:
        raise UsageError(f"{flag} is empty: name a path, or leave it out")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{flag} {text}: no such home directory") from error


@dataclass(frozen=True)
class Wallet:
    """Bittensor wallet whose hotkey signs every message."""

    name: str = setting("default", "wallet (coldkey) name", common=True)
    hotkey: str = setting("default", "hotkey name inside the wallet", common=True)
    path: str = setting("~/.bittensor/wallets", "folder that holds the wallets")


@dataclass(frozen=True)
class Axon:
    """Address a miner listens on, and whom it accepts."""

    port: int = setting(8091, "port to listen on; 0 takes a free one", common=True, least=0, most=65535)
    host: str = setting("127.0.0.1", "address to bind; any but loopback requires --axon.validators", common=True)
    validators: tuple[str, ...] = setting(
        (), "hotkeys of the validators to work for; on loopback empty allows any", common=True
    )
    proxies: bool = setting(False, "accept requests that passed a proxy (Forwarded, X-Forwarded-* or Via header)")


@dataclass(frozen=True)
class Axons:
    """Miners a validator works with."""

    addresses: tuple[str, ...] = setting((), "miners to train with: PORT, HOST:PORT or HOTKEY@HOST:PORT", common=True)
    accept_new: bool = setting(False, "accept a new hotkey on an axon whose first hotkey is on record")
    wait_seconds: float = setting(60.0, "seconds to wait for enough miners before giving up", least=0)


@dataclass(frozen=True)
class Model:
    """Size of the GPT-2."""

    preset: str = setting("small", "model size: tiny, nano, small (124M), medium, large or xl", common=True)

    @property
    def shape(self) -> ModelShape:
        """Shape of the preset. Raises UsageError for an unknown name."""
        if self.preset not in PRESETS:
            raise UsageError(f"--model.preset {self.preset}: no such preset; one of {', '.join(PRESETS)}")
        return PRESETS[self.preset]


@dataclass(frozen=True)
class MinerModel:
    """Model sizes a miner accepts."""

    preset: str = setting("", "accept only this size (tiny, nano, small, medium, large, xl); empty: any")

    @property
    def shape(self) -> ModelShape | None:
        """Shape of the preset; None for any. Raises UsageError for an unknown name."""
        return Model(self.preset).shape if self.preset else None


@dataclass(frozen=True)
class DataSource:
    """Where the training text comes from and where it is cached."""

    source: str = setting(
        "refinedweb", "training text: refinedweb, sample (embedded), parquet:GLOB or text:GLOB", common=True
    )
    revision: str = setting(
        "",
        "commit of a dataset on the hub; empty: the default",
        note="The default is a pinned commit for refinedweb and the newest commit of main for other datasets.",
    )
    column: str = setting("content", "column that holds the text, for parquet:GLOB")
    cache: str = setting("~/.cache/fedgpt2", "folder for tokenised pages")
    cache_gb: float = setting(20.0, "size limit of the cache, in GB; least recently used pages go first", least=0.1)


@dataclass(frozen=True)
class Data(DataSource):
    """Training text and how it is split among the miners."""

    seq_len: int = setting(0, "tokens per training window; 0: the model's block size", least=0)
    windows: int = setting(8, "windows assigned to each miner in a round", common=True, least=1)
    span: int = setting(
        0,
        "rounds over which a page is used up; 0: chosen from the page size",
        note="Each round uses one slice of the windows of the page.",
        least=0,
    )
    max_slots: int = setting(16, "miners that can hold disjoint pages at the same time", least=1, most=2**20)
    lease: int = setting(100, "rounds after which the slot of an absent miner is free again", least=1)
    max_pages: int = setting(8, "maximum number of pages assigned to a miner in a round", least=1, most=4096)


@dataclass(frozen=True)
class Round:
    """Timing of a round."""

    deadline: float = setting(600.0, "seconds a miner has for a round, transfers included", common=True, least=0.1)
    quorum: float = setting(
        1.0,
        "share of the miners whose answers end the wait",
        note="The wait never ends before the aggregation rule has as many answers as it needs.",
        least=0,
        most=1,
    )
    min_miners: int = setting(1, "miners that must be present before a round starts", least=1)


@dataclass(frozen=True)
class Gradient:
    """How a miner computes its gradient."""

    strategy: str = setting("exact", "exact (autograd over the assigned windows) or plugin")
    plugin: str = setting(
        "",
        "package.module:function that computes the gradient, for strategy plugin",
        note="Example: `examples/plugin_gradient.py`.",
    )
    micro_batch: int = setting(8, "windows per forward and backward pass", least=1)
    precision: str = setting("auto", "bf16 (autocast), fp32, or auto: bf16 if the device has instructions for it")


@dataclass(frozen=True)
class Codec:
    """Encoding of the tensors in transfers."""

    state: str = setting("fp32", "encoding of the weights sent to miners: fp32 or bf16")
    gradient: str = setting("fp32", "encoding of the gradients sent back: fp32 or bf16")


@dataclass(frozen=True)
class Optimizer:
    """The validator's optimizer."""

    name: str = setting("adamw", "adamw, sgd, or package.module:object (docs/simulation.md)")
    lr: float = setting(1e-3, "peak learning rate", common=True, least=0)
    min_lr: float = setting(1e-4, "learning rate at the end of the cosine decay", least=0)
    warmup: int = setting(10, "rounds of linear warm-up", least=0)
    horizon: int = setting(0, "round at which the cosine reaches min_lr; 0: --rounds, or constant without it", least=0)
    beta1: float = setting(0.9, "decay rate of Adam's first moment", least=0, most=0.9999)
    beta2: float = setting(0.95, "decay rate of Adam's second moment", least=0, most=0.999999)
    eps: float = setting(1e-8, "Adam's epsilon", least=0)
    weight_decay: float = setting(0.1, "decoupled weight decay of matrices; biases and gains have none", least=0)
    clip: float = setting(1.0, "maximum norm of the aggregate; 0: no clipping", least=0)


@dataclass(frozen=True)
class Aggregation:
    """How admitted gradients are combined into one."""

    rule: str = setting(
        "default",
        "aggregation rule: default, mean, another of docs/aggregation.md, or package.module:object",
        common=True,
        note="`default` is norm clipping, NNM and the geometric median, and below 4 miners the clipped mean. `mean` "
        "weights by assigned tokens; its breakdown point is 0: a single hostile miner controls it.",
    )
    gate: bool = setting(True, "reduce or skip a step that raises the loss on held-out windows")
    tolerance: float = setting(0.05, "largest rise of that loss that the gate allows, in nats per token", least=0)


@dataclass(frozen=True)
class Ranking:
    """How miners are ranked and paid. The evidence of each round holds the settings that ranked it."""

    rule: str = setting("contribution", "contribution: rank by what a gradient adds; off: nobody is scored")
    tokens: int = setting(
        0, "tokens a round for gradient and audits; 0: a tenth of those assigned, at most 4,096", least=0
    )
    audits: int = setting(4, "miners audited on their own text a round, the most uncertain ones first", least=0)
    tau: float = setting(0.3, "drift of a miner's rating a round, in units of rating", least=0)
    memory: int = setting(20, "rounds over which reliability, presence and contribution are averaged", least=1)
    clean_rounds: int = setting(5, "rounds with an own gradient before a new miner is paid", least=0)
    power: float = setting(2.0, "exponent of the score in the pay", least=1, most=8)


@dataclass(frozen=True)
class Checkpoint:
    """Checkpoints on disk."""

    every: int = setting(1, "rounds between checkpoints", note="A restart continues from the last one.", least=1)
    keep: int = setting(2, "number of checkpoints to keep", least=1)


@dataclass(frozen=True)
class Run:
    """One run and its folder."""

    dir: str = setting(
        "runs/default",
        "run directory; a run found there is resumed",
        common=True,
        note="Without one, `fedgpt2 simulate` uses a temporary folder.",
    )
    seed: int = setting(
        1337, "seed of the initial weights, the data assignment and other draws", least=0, most=2**53 - 1
    )
    threads: int = setting(0, "CPU threads for tensor arithmetic; 0: one per core", least=0, most=1024)
    eval_every: int = setting(10, "rounds between evaluations of the held-out loss", least=1)
    eval_windows: int = setting(16, "held-out windows per evaluation", least=1)
    score_windows: int = setting(4, "windows of the score pool on which train_loss is measured", least=1)
    scratch: str = setting(
        "",
        "folder for contributions in flight; empty: inside the run directory",
        note="Contributions lie in files mapped into memory, one or two bodies of the model a miner.",
    )
    plain: bool = setting(False, "print plain lines instead of the live console")


@dataclass(frozen=True)
class MinerRun:
    """A miner's folder and threads."""

    dir: str = setting(
        "~/.fedgpt2/miner",
        "folder for the journal of accepted orders",
        common=True,
        note="Each hotkey has a folder of its own in it.",
    )
    threads: int = setting(0, "CPU threads for tensor arithmetic; 0: one per core", common=True, least=0, most=1024)


@dataclass(frozen=True)
class PeerLimits:
    """What any peer can make this process spend."""

    message_bytes: int = setting(1 << 20, "maximum size of a JSON message, in bytes", least=4096)
    header_bytes: int = setting(1 << 20, "maximum size of a safetensors header, in bytes", least=4096)
    request_seconds: float = setting(10.0, "seconds allowed for one control request", least=0.1)
    progress_seconds: float = setting(30.0, "seconds a transfer may make no progress", least=0.1)


@dataclass(frozen=True)
class MinerLimits(PeerLimits):
    """What a validator can make a miner spend."""

    model_parameters: int = setting(2_000_000_000, "largest model to accept, in parameters", least=1)


@dataclass(frozen=True)
class Limits(PeerLimits):
    """What a miner can make a validator spend."""

    gradient_norm: float = setting(1e3, "maximum norm of an admitted gradient", least=0, most=1e36)


@dataclass(frozen=True)
class MinerConfig:
    """Settings of `fedgpt2 miner`."""

    wallet: Wallet = Wallet()
    axon: Axon = Axon()
    model: MinerModel = MinerModel()
    data: DataSource = DataSource()
    gradient: Gradient = Gradient()
    limits: MinerLimits = MinerLimits()
    run: MinerRun = MinerRun()
    device: str = setting("cuda:0", _DEVICE, common=True)


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
    device: str = setting("cuda:0", _DEVICE, common=True)
    rounds: int = setting(0, "rounds to train; 0: until stopped", common=True, least=0)


@dataclass(frozen=True)
class SimulationConfig:
    """Settings of `fedgpt2 simulate`: a validator's without sockets and wallets, and the miners."""

    miners: int = setting(8, "miners that take part, hostile ones included", common=True, least=1)
    attack: str = setting(
        "none",
        "what hostile miners send: none, absent, an attack's name, or package.module:function",
        common=True,
        note="With `none` they behave as honest miners; with `absent` they take no part.",
    )
    byzantine: int = setting(
        0, "number of hostile miners", common=True, note="`--run.seed` draws which ones they are.", least=0
    )
    rounds: int = setting(30, "rounds to train", common=True, least=1)
    device: str = setting("cpu", _DEVICE, common=True)
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
