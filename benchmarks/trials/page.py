"""The record as Markdown, put between two markers of a page."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from fedgpt2.simulate.attacks.registry import ADAPTIVE
from trials.cells import BYZANTINE, COMPARED, MINERS, SEEDS
from trials.verdicts import LIMIT, LIMIT_ADAPTIVE, WORSE, Control, Measured, Row, percent

__all__ = ["BEGIN", "END", "attack_free", "comparison", "controls", "section", "table", "woven"]

BEGIN, END = "<!-- robustness: written by benchmarks/robustness.py -->", "<!-- /robustness -->"


def section(
    rows: Sequence[Row],
    rules: Mapping[str, Mapping[str, Measured]],
    references: Sequence[Mapping[str, object]],
    held: Sequence[Control],
    about: Mapping[str, str],
) -> str:
    """All of it. `about` has the cells' commits and hardware, the date, the flags and the CPU minutes, as text."""
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
        f"**Control.** Without robustness an attack must hurt, at least {percent(WORSE)}, or its row shows nothing:",
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
    """Attack by what came of it."""
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
    """What the plain mean made of the attacks it must not survive."""
    return _table(
        ["mean under", "loss", ""],
        [[each.attack, percent(each.ratio), "void" if each.void else "hurts"] for each in held],
    )


def comparison(rules: Mapping[str, Mapping[str, Measured]]) -> list[str]:
    """Rule by attack."""
    body = []
    for rule, measured in rules.items():
        cells = [measured.get(attack) for attack in COMPARED]
        body.append([rule, *(_compared(cell) for cell in cells)])
    return _table(["rule", *COMPARED], body)


def attack_free(references: Sequence[Mapping[str, object]]) -> list[str]:
    """What everything is compared with, a row for each rule, gate and seed."""
    names = ["rule", "gate", "seed", "unigram", "all honest", "honest alone"]
    keys = ["rule", "gate", "seed", "unigram", "none", "absent"]
    return _table(names, [[_reference(reference[key]) for key in keys] for reference in references])


def woven(text: str, part: str, markers: tuple[str, str] = (BEGIN, END)) -> str:
    """`text` with `part` between two markers. Raises ValueError unless both are there, once."""
    begin, end = markers
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"the page needs the lines {begin} and {end}, once each")
    before, rest = text.split(begin)
    return f"{before}{begin}\n{part}\n{end}{rest.split(end)[1]}"


def _method(about: Mapping[str, str]) -> list[str]:
    alone = MINERS - BYZANTINE
    return [
        f"{MINERS} miners, {BYZANTINE} of them hostile, `nano` on the embedded text; each number is of a run of",
        f"`fedgpt2 simulate`; its first {about['before']} rounds are without liars and the same for all of a seed.",
        "Attack-free is the better of two runs of the same seed: all honest, and the",
        f"{alone} honest ones alone. Limits: {percent(LIMIT)} for fixed attacks, {percent(LIMIT_ADAPTIVE)} for those",
        f"that answer to the defence (marked *). All are the worst of {len(SEEDS)} seeds, but without the gate, where",
        f"only seed {SEEDS[0]} was run. Loss: the final held-out loss above the",
        "attack-free one; to alone: above that of the honest ones alone, who lack the liars' part of the text too.",
        "Share: the part of the weight in what was applied that liars had (their number is a quarter); cosine: of what",
        "was applied with the honest mean; both as means over rounds. Kept are rounds without a step, halved those of",
        "half a step, as means over seeds. Nobody is ranked here: docs/ranking.md.",
        "",
        "`--limits.gradient_norm` is raised in every run, so that the rule is tested and not the bound of admission.",
        f"Flags: `{about['flags']}`.",
    ]


def _reference(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:.3f}" if isinstance(value, float) else str(value if value is not None else "")


def _rounds(seeds: Sequence[Measured]) -> str:
    """Rounds without a step and with half of one, as means over seeds."""
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
