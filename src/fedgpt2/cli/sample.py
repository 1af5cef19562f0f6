"""`fedgpt2 sample`: text from a checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedgpt2.cli.parsing import parse
from fedgpt2.cli.runs import open_model, open_run
from fedgpt2.config import setting

if TYPE_CHECKING:
    from fedgpt2.model.gpt2 import GPT2

__all__ = ["Sample", "continuation", "main"]


@dataclass(frozen=True)
class Sample:
    """Settings of `fedgpt2 sample`."""

    run_dir: str = setting("runs/default", "run directory", flag="run.dir")
    prompt: str = setting("", "text to go on from; none: the start of a document")
    tokens: int = setting(100, "tokens to draw", least=1)
    temperature: float = setting(0.8, "0 takes the likeliest token each time; 1 draws as the model says", least=0)
    top_k: int = setting(50, "draw among this many likeliest tokens; 0: among all", least=0)
    seed: int = setting(0, "seed of the draws", least=0, most=2**53 - 1)
    round: int = setting(0, "round whose checkpoint is used; 0: the newest", least=0)


def main(argv: Sequence[str]) -> int:
    """Print a sample; the exit code."""
    settings = parse(Sample, argv, prog="fedgpt2 sample", about="Prints text that a run's model goes on with.")
    _, model, _ = open_model(open_run(settings.run_dir), settings.round or None)
    print(continuation(model, settings))
    return 0


def continuation(model: "GPT2", settings: Sample) -> str:
    """The prompt and what follows it, up to the end of the document."""
    import torch

    from fedgpt2.data.tokenizer import EOT, encode, load
    from fedgpt2.model.sample import generate

    prompt = torch.tensor([EOT, *encode(settings.prompt).tolist()])
    drawn = generate(
        model,
        prompt,
        settings.tokens,
        temperature=settings.temperature,
        top_k=settings.top_k,
        generator=torch.Generator().manual_seed(settings.seed),
    ).tolist()[1:]
    end = drawn.index(EOT) if EOT in drawn else len(drawn)
    return load().decode(drawn[:end])
