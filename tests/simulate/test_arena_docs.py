"""docs/simulation.md lists every attack with its line in the registry."""

from pathlib import Path

from fedgpt2.simulate.attacks.registry import ATTACKS, NAMES

DOCUMENT = Path(__file__).parents[2] / "docs" / "simulation.md"


def table() -> str:
    """A line an attack: Markdown."""
    lines = ["| name | what is sent | from | kind |", "|---|---|---|---|"]
    for name in NAMES:
        attack = ATTACKS[name]
        kind = ("adaptive" if attack.adaptive else "fixed") + ("" if attack.alone else ", not alone")
        lines.append(f"| `{name}` | {attack.about} | {attack.source} | {kind} |")
    return "\n".join(lines)


def test_the_document_lists_every_attack():
    assert table() in DOCUMENT.read_text(encoding="utf-8")
