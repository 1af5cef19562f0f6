"""Two pictures as SVG: dots with limits, and curves. Written out by hand: they need lines, dots and words."""

import math
from collections.abc import Mapping, Sequence
from html import escape

from fedgpt2.simulate.attacks.registry import ADAPTIVE
from trials.verdicts import LIMIT, LIMIT_ADAPTIVE, Row

__all__ = ["curves", "dots"]

_WIDTH, _LINE = 760, 18
_LEFT, _RIGHT, _TOP, _BOTTOM = 170, 20, 56, 44
_INK, _GREY, _RED, _AMBER, _BLUE = "#222222", "#c9c9c9", "#b03a2e", "#c98a1b", "#1f4e79"
_COLOURS = (_BLUE, _RED, "#9bb7d4", "#e0a49c")
_LOWEST, _HIGHEST = -4.0, 12.0  # percent; what is beyond is drawn at the edge


def dots(rows: Sequence[Row]) -> str:
    """Each attack's final loss over the attack-free one: a dot a seed, a ring without the gate, and the limits."""
    height = _TOP + _LINE * len(rows) + _BOTTOM
    bottom = height - _BOTTOM
    parts = [
        _word(_LEFT, 18, "final loss above the attack-free one, percent", size=13),
        *_legend(),
        *_ticks(bottom),
        _limit(LIMIT, bottom, _RED),
        _limit(LIMIT_ADAPTIVE, bottom, _AMBER),
    ]
    for i, row in enumerate(rows):
        y = _TOP + _LINE * i + _LINE / 2
        colour = _AMBER if row.attack in ADAPTIVE else _RED
        parts.append(_word(_LEFT - 8, y + 4, row.attack, anchor="end"))
        parts.append(_path([(_LEFT, y), (_WIDTH - _RIGHT, y)], "#eeeeee", 1))
        if row.bare is not None:
            parts.append(_dot(row.bare.ratio, y, "none", _GREY))
        for each in row.seeds:
            broken = not each.ratio <= row.limit
            parts.append(_dot(each.ratio, y, colour if broken else _BLUE, "none"))
    return _svg(_WIDTH, height, parts)


def curves(lines: Mapping[str, Sequence[tuple[float, float]]], unigram: float | None) -> str:
    """Held-out loss over rounds, one line a run, and the unigram's loss. Points that are no numbers are left out."""
    width, height, left, bottom = _WIDTH, 340, 56, 340 - _BOTTOM
    clean = {name: [point for point in points if all(map(math.isfinite, point))] for name, points in lines.items()}
    points = [point for line in clean.values() for point in line]
    if not points:
        return _svg(width, height, [_word(left, 40, "no finite loss")])
    last = max(x for x, _ in points) or 1.0
    low = math.floor(min([y for _, y in points] + ([unigram] if unigram else [])) * 2) / 2
    high = min(math.ceil(max(y for _, y in points) * 2) / 2, low + 12.0)

    def at(x: float, y: float) -> tuple[float, float]:
        share = (min(y, high) - low) / max(high - low, 1e-9)
        return left + (width - left - _RIGHT) * x / last, bottom - share * (bottom - _TOP)

    parts = [_word(left, 18, "held-out loss, nats a token, over rounds", size=13)]
    for i in range(5):
        y, x = low + (high - low) * i / 4, last * i / 4
        parts.append(_path([at(0, y), at(last, y)], "#eeeeee", 1))
        parts.append(_word(left - 8, at(0, y)[1] + 4, f"{y:.1f}", anchor="end"))
        parts.append(_word(at(x, low)[0], bottom + 18, f"{x:.0f}", anchor="middle"))
    if unigram is not None:
        parts.append(_path([at(0, unigram), at(last, unigram)], _INK, 1, dashed=True))
        parts.append(_word(*at(last, unigram), f"unigram {unigram:.2f}", anchor="end"))
    for i, (name, line) in enumerate(clean.items()):
        colour = _COLOURS[i % len(_COLOURS)]
        parts.append(_path([at(*point) for point in line], colour, 2))
        parts.append(_word(left + 170 * i, 40, name, colour=colour))
    return _svg(width, height, parts)


def _x(ratio: float) -> float:
    percent = 100 * (ratio - 1) if math.isfinite(ratio) else _HIGHEST
    share = (min(max(percent, _LOWEST), _HIGHEST) - _LOWEST) / (_HIGHEST - _LOWEST)
    return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)


def _legend() -> list[str]:
    words = (("a seed, gate on", _BLUE), ("without the gate", "#888888"), ("limit, fixed", _RED), ("adaptive", _AMBER))
    return [_word(_LEFT + 130 * i, 40, word, colour=colour) for i, (word, colour) in enumerate(words)]


def _ticks(bottom: float) -> list[str]:
    parts = []
    for percent in range(int(_LOWEST), int(_HIGHEST) + 1, 2):
        x = _x(1 + percent / 100)
        text = f"{percent:+d}" if percent else "0"
        edge = " and more" if percent == _HIGHEST else ""
        parts.append(_path([(x, _TOP), (x, bottom)], _GREY if percent == 0 else "#eeeeee", 1))
        parts.append(_word(x, bottom + 18, text + edge, anchor="end" if edge else "middle"))
    return parts


def _limit(ratio: float, bottom: float, colour: str) -> str:
    return _path([(_x(ratio), _TOP), (_x(ratio), bottom)], colour, 1, dashed=True)


def _dot(ratio: float, y: float, fill: str, stroke: str) -> str:
    return f'<circle cx="{_x(ratio):.1f}" cy="{y:.1f}" r="4" fill="{fill}" stroke="{stroke}" stroke-width="1.5"/>'


def _path(points: Sequence[tuple[float, float]], colour: str, width: int, *, dashed: bool = False) -> str:
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    return f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="{width}"{dash}/>'


def _word(x: float, y: float, text: str, *, anchor: str = "start", size: int = 11, colour: str = _INK) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} font-size="{size}" fill="{colour}">{escape(text)}</text>'


def _svg(width: int, height: float, parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:.0f}" font-family="sans-serif">'
    return "\n".join([head, f'<rect width="{width}" height="{height:.0f}" fill="white"/>', *parts, "</svg>"]) + "\n"
