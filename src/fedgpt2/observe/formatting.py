"""Numbers and names as people read them."""

__all__ = ["count", "duration", "loss", "many", "short_key", "volume"]


def volume(size: float) -> str:
    """Bytes in decimal units: `55.2 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def count(number: int) -> str:
    """A large number in few digits: `7.3M`."""
    for limit, unit in ((1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k")):
        if number >= limit:
            return f"{number / limit:.1f}{unit}"
    return str(number)


def many(number: int, what: str) -> str:
    """How many of a thing: `1 round`, `2 rounds`."""
    return f"{number} {what}{'s'[: number != 1]}"


def duration(seconds: float) -> str:
    """Seconds as `1:04` or `2:01:04`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def loss(value: float | None) -> str:
    """A loss in nats a token; a dash where none was measured."""
    return "-" if value is None else f"{value:.3f}"


def short_key(hotkey: str) -> str:
    """The two ends of a hotkey."""
    return hotkey if len(hotkey) <= 12 else f"{hotkey[:6]}…{hotkey[-4:]}"
