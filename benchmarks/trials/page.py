"""The robustness table as Markdown, written between two markers of a page."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from fedgpt2.simulate.attacks.registry import ADAPTIVE
from trials.cells import BYZANTINE, COMPARED, MINERS, SEEDS
from trials.verdicts import LIMIT, LIMIT_ADAPTIVE, WORSE, Control, Measured, Row, percent

__all__ = ["BEGIN", "END", "attack_free", "comparison", "controls", "insert", "section", "table"]

BEGIN, END = "<!-- robustness: written by benchmarks/robustness.py -->", "<!-- /robustness -->"


def section(
    rows: Sequence[Row],
    rules: Mapping[str, Mapping[str, Measured]],
    references: Sequence[Mapping[str, object]],
    held: Sequence[Control],
    about: Mapping[str, str],
) -> str:
    """The whole section. `about` holds, as text, commits, hardware, date, flags, CPU minutes and rounds before."""
    lines = [
        *_method(about),
        "",
        "Attack-free losses, nats a token, beside a unigram model's on the same windows:",
        "",
        *attack_free(references),
        "",
        *table(rows),
        "",
        "![Final loss of each attack](robustness-attacks.svg)",
        "",
        f"**Control.** An attack must raise the loss of a plain mean by {percent(WORSE)} or its row shows nothing:",
        "",
        *controls(held),
        "",
        "![Loss under sign flip](robustness-curves.svg)",
        "",
        "**Rules compared**, without the gate, one seed: final loss over the same rule's attack-free one (share of the "
        "weight, cosine).",
        "",
        *comparison(rules),
        "",
        f"Cells of commits {about['commits']}, {about['date']}, {about['hardware']}; {about['minutes']} CPU minutes.",
    ]
    return "\n".join(lines)


def table(rows: Sequence[Row]) -> list[str]:
    """One line an attack."""
    body = []
    for row in rows:
        bare = row.bare
        body.append(
            [
                f"{row.attack}{'*' if row.attack in ADAPTIVE else ''}",
                percent(row.worst),
                percent(row.alone),
                _cell(row.share),
                _cell(row.cosine),
                _rounds(row.seeds),
                percent(bare.ratio) if bare else "",
                row.verdict,
            ]
        )
    head = ["attack", "loss", "to alone", "share", "cosine", "kept / halved", "loss, no gate", "verdict"]
    return _table(head, body)


def controls(held: Sequence[Control]) -> list[str]:
    """One line a positive control."""
    return _table(
        ["mean under", "loss", ""],
        [[each.attack, percent(each.ratio), "void" if each.void else "hurts"] for each in held],
    )


def comparison(rules: Mapping[str, Mapping[str, Measured]]) -> list[str]:
    """One line a rule, one column an attack."""
    body = []
    for rule, measured in rules.items():
        cells = [measured.get(attack) for attack in COMPARED]
        body.append([rule, *(_compared(cell) for cell in cells)])
    return _table(["rule", *COMPARED], body)


def attack_free(references: Sequence[Mapping[str, object]]) -> list[str]:
    """The attack-free losses, one line a rule, gate and seed."""
    names = ["rule", "gate", "seed", "unigram", "all honest", "honest alone"]
    keys = ["rule", "gate", "seed", "unigram", "none", "absent"]
    return _table(names, [[_reference(reference[key]) for key in keys] for reference in references])


def insert(text: str, part: str, markers: tuple[str, str] = (BEGIN, END)) -> str:
    """Replace what stands between two markers of `text`. Raises ValueError unless each occurs once."""
    begin, end = markers
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"the page needs the lines {begin} and {end}, once each")
    before, rest = text.split(begin)
    return f"{before}{begin}\n{part}\n{end}{rest.split(end)[1]}"


def _method(about: Mapping[str, str]) -> list[str]:
    alone = MINERS - BYZANTINE
    return [
        f"{MINERS} miners, {BYZANTINE} of them hostile, `nano` on the embedded text. Each number comes from runs of",
        f"`fedgpt2 simulate`; all runs of a seed share {about['before']} attack-free rounds and then differ.",
        "",
        "| column | meaning |",
        "| --- | --- |",
        f"| loss | final held-out loss over the attack-free one, worst of {len(SEEDS)} seeds; attack-free is the lower "
        f"of all {MINERS} honest and the {alone} honest miners alone |",
        "| to alone | the same over the loss of the honest miners alone, who also lack the hostile miners' text |",
        "| share | part of the aggregation weight that the hostile miners had, mean over rounds; they are a quarter |",
        "| cosine | between the aggregate and the honest mean, mean over rounds |",
        "| kept / halved | rounds without a step and with half a step, means over seeds |",
        f"| loss, no gate | loss without the loss gate, seed {SEEDS[0]} only |",
        "",
        f"Limits on loss: {percent(LIMIT)} for fixed attacks, {percent(LIMIT_ADAPTIVE)} for adaptive ones (marked *).",
        "Miners are not ranked in these runs. `--limits.gradient_norm` is raised, so that the rule is tested and not",
        f"the bound of admission. Flags: `{about['flags']}`.",
    ]


def _reference(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:.3f}" if isinstance(value, float) else str(value if value is not None else "")


def _rounds(seeds: Sequence[Measured]) -> str:
    """Rounds without a step and with half a step, means over seeds."""
    if not seeds:
        return ""
    return " / ".join(f"{fmean(values):.3g}" for values in ([s.kept for s in seeds], [s.halved for s in seeds]))


def _compared(cell: Measured | None) -> str:
    if cell is None:
        return ""
    return f"{percent(cell.ratio)} ({_cell(cell.share)}, {_cell(cell.cosine)})"


def _cell(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.2f}"


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    rows = [head, ["---"] * len(head), *body]
    return ["| " + " | ".join(row) + " |" for row in rows]
