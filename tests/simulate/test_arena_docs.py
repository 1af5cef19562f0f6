"""The document lists every attack in the words of the program."""

from pathlib import Path

from fedgpt2.simulate.attacks.registry import ATTACKS, NAMES

DOCUMENT = Path(__file__).parents[2] / "docs" / "aggregation.md"


def table() -> str:
    """A line an attack: Markdown."""
    lines = ["| name | what is sent | from | kind |", "|---|---|---|---|"]
    for name in NAMES:
        attack = ATTACKS[name]
        kind = ("adaptive" if attack.adaptive else "fixed") + ("" if attack.alone else ", not alone")
        lines.append(f"| `{name}` | {attack.about} | {attack.source} | {kind} |")
    return "\n".join(lines)


def test_the_document_lists_the_arena():
    assert table() in DOCUMENT.read_text(encoding="utf-8")
