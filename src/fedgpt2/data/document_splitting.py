"""Cut running text into documents of about 2.5 KB, at the best break near each cut."""

import re

__all__ = ["DOCUMENT_BYTES", "document_spans"]

DOCUMENT_BYTES = 2500

# In order of preference. A document ends where the match starts; the next one begins where it ends.
_BLANK_LINE = re.compile(rb"(?:\r?\n[ \t]*){2,}")
# Three lower-case (or non-ASCII) letters before the stop keep "Mr.", "U. S." and "No." whole.
_SENTENCE = re.compile(
    rb"(?:(?<=[a-z\x80-\xff]{3}[.!?])|(?<=[a-z\x80-\xff]{3}[.!?][\"')\]]))\s+(?=[\"'(A-Z\x80-\xff])"
    rb"|(?<=\xe3\x80\x82|\xef\xbc\x81|\xef\xbc\x9f)"  # the full-width stops of Chinese and Japanese
)
_SPACE = re.compile(rb"\s+")
_CHARACTER = re.compile(rb"(?=[\x00-\x7f\xc0-\xff])")  # any byte that does not continue a UTF-8 character
_BREAKS = (_BLANK_LINE, _SENTENCE, _SPACE, _CHARACTER)


def document_spans(raw: bytes, target: int = DOCUMENT_BYTES) -> list[tuple[int, int]]:
    """Byte ranges [start, end) of the documents in UTF-8 text, in order, without surrounding white space.

    A document is cut where a blank line, else a sentence end, else white space, else a character
    boundary comes nearest to `target` bytes, between 0.5 and 1.5 times of it. Text of at most
    1.5 x target bytes is one document; blank text is none. `raw` must be UTF-8.
    """
    start, end = _skip(raw, 0), len(raw.rstrip())
    spans = []
    while end - start > target * 3 // 2:
        stop, after = _cut(raw, start, end, target)
        spans.append((start, start + len(raw[start:stop].rstrip())))
        start = _skip(raw, after)
    if start < end:
        spans.append((start, end))
    return spans


def _skip(raw: bytes, start: int) -> int:
    space = _SPACE.match(raw, start)
    return space.end() if space else start


def _cut(raw: bytes, start: int, end: int, target: int) -> tuple[int, int]:
    """Where the document that begins at `start` stops, and where the text goes on."""
    low, high, ideal = start + target // 2, start + target * 3 // 2, start + target
    for pattern in _BREAKS:
        found = [m.span() for m in pattern.finditer(raw, low, min(high, end)) if m.start() > start]
        if found:
            return min(found, key=lambda span: abs(span[0] - ideal))
    return high, high  # no break of any kind: not UTF-8
