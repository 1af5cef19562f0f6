"""The document lists every attack in the words of the program."""

from pathlib import Path

from fedgpt2.simulate.attacks.names import ALONE, PROFILES

DOCUMENT = Path(__file__).parents[2] / "docs" / "aggregation.md"


def table() -> str:
    """A line an attack: Markdown."""
    lines = ["| name | what is sent | from | kind |", "|---|---|---|---|"]
    for name, profile in PROFILES.items():
        kind = ("adaptive" if profile.adaptive else "fixed") + ("" if name in ALONE else ", not alone")
        lines.append(f"| `{name}` | {profile.about} | {profile.source} | {kind} |")
    return "\n".join(lines)


def test_the_document_lists_the_arena():
    assert table() in DOCUMENT.read_text(encoding="utf-8")
