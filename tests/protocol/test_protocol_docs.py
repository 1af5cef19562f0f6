"""docs/protocol.md says what the code does: every message, field, type, default, route, reason and limit."""

import json
import re
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from msgspec import inspect

from fedgpt2 import codec, config
from fedgpt2.errors import Culprit, ProtocolError, Reason
from fedgpt2.miner import orders
from fedgpt2.miner.axon import Axon
from fedgpt2.protocol import messages
from fedgpt2.protocol.statuses import http_status
from fedgpt2.types import ModelShape

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
STRUCTS = [
    value
    for value in vars(messages).values()
    if isinstance(value, type) and issubclass(value, messages.Message) and value is not messages.Message
]


def section(title: str) -> str:
    """Text under a heading, up to the next one of any level."""
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#+ |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert found, f"no section {title!r}"
    return found[1]


def table(text: str) -> list[list[str]]:
    """Cells of the rows of the tables in a text, headings left out."""
    lines = [line.strip().strip("|") for line in text.splitlines() if line.strip().startswith("|")]
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)] for line in lines]
    rules = {i for i, row in enumerate(rows) if all(re.fullmatch(":?-+:?", cell) for cell in row)}
    return [row for i, row in enumerate(rows) if i not in rules and i + 1 not in rules]


def described(type_: inspect.Type) -> str:
    """How the document writes a type."""
    match type_:
        case inspect.UnionType(types=types):
            names = [described(part) for part in types if not isinstance(part, inspect.NoneType)]
            return f"{' or '.join(names)} or null"
        case inspect.LiteralType(values=values):
            return f"one of {' '.join(f'`{value}`' for value in values)}"
        case inspect.VarTupleType(item_type=item, min_length=least, max_length=most):
            if least and least == most:
                return f"list of {least} {described(item)}"
            many = f"of {least} to {most}" if least else f"of at most {most}" if most else "of"
            return f"list {many} {described(item)}"
        case inspect.StructType(cls=cls) | inspect.DataclassType(cls=cls) | inspect.EnumType(cls=cls):
            return cls.__name__
    return _described_value(type_)


def _described_value(type_: inspect.Type) -> str:
    match type_:
        case inspect.StrType(pattern=str(pattern)):
            return "hex" + "".join(re.findall(r"\{(\d+)\}", pattern))
        case inspect.StrType(min_length=1, max_length=128):
            return "word"
        case inspect.StrType(max_length=500):
            return "line"
        case inspect.StrType():
            return "text"
        case inspect.IntType(ge=0, le=most) if most == 2**53 - 1:
            return "natural"
        case inspect.IntType():
            return "integer"
        case inspect.FloatType(gt=0):
            return "number > 0"
        case inspect.FloatType():
            return "number"
        case inspect.BoolType():
            return "boolean"
    raise AssertionError(f"no word for {type_}")


def default(field: inspect.Field) -> str:
    if field.required:
        return ""
    if field.default is None:
        return "null"
    if field.default == ():
        return "`[]`"
    return (
        '`""`'
        if field.default == ""
        else f"`{field.default}`"
        if isinstance(field.default, str)
        else f"{field.default:g}"
    )


def fields_of(cls: type) -> list[list[str]]:
    info: Any = inspect.type_info(cls)
    return [[f"`{field.name}`", described(field.type), default(field)] for field in info.fields]


@pytest.mark.parametrize("cls", [*STRUCTS, ModelShape], ids=lambda cls: cls.__name__)
def test_protocol_document_states_every_field(cls: type) -> None:
    assert [row[:3] for row in table(section(cls.__name__))] == fields_of(cls)
    assert all(row[3] for row in table(section(cls.__name__)))


def test_protocol_document_names_no_message_that_is_none() -> None:
    titles = re.findall(r"^### (\S+)$", TEXT, re.MULTILINE)
    assert set(titles) == {cls.__name__ for cls in STRUCTS} | {"ModelShape"}


def test_protocol_document_lists_every_reason() -> None:
    rows = {row[0].strip("`"): row[1:] for row in table(section("Reasons"))}
    assert list(rows) == [reason.value for reason in Reason]
    for reason in Reason:
        said_by, culprit, status, meaning = rows[reason.value]
        assert (culprit, status) == (reason.culprit.value, str(http_status(reason))), reason
        assert set(said_by.split()) <= {"M", "V"}
        assert said_by
        assert meaning


def test_protocol_document_lists_every_culprit_and_kind() -> None:
    assert all(f"`{culprit.value}`" in section("Receipt") for culprit in Culprit)
    kinds = [row[1] for row in table(section("Envelope")) if row[0] == "`kind`"]
    assert kinds == [f"one of {' '.join(f'`{kind}`' for kind in sorted(get_args(messages.Kind)))}"]


def test_protocol_document_lists_every_route() -> None:
    axon = Axon(*[None] * 5)  # type: ignore[arg-type]
    served = {
        f"{route.method} {route.resource.canonical}"
        for route in axon.app().router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    stated = {re.sub(r"\?.*", "", row[0].strip("`")) for row in table(section("Routes"))}
    assert stated == served


def test_protocol_document_lists_every_codec() -> None:
    rows = {row[0].strip("`"): row[1].strip("`") for row in table(section("Codecs"))}
    assert rows == {name: codec.get(name).dtype for name in codec.CODECS.names}


def test_protocol_document_states_every_tensor() -> None:
    cells = [cell.strip("`") for row in table(section("Model")) for cell in row]
    stated = {cell.replace("{l}", "0") for cell in cells if cell.endswith((".weight", ".bias"))}
    assert stated == set(ModelShape(1, 1, 1, 1).schema())


def test_protocol_document_states_the_limits() -> None:
    stated = {row[0]: row[1] for row in table(section("Times and caps"))}
    limits = config.Limits()
    assert stated["safetensors header"] == f"{limits.header_bytes >> 20} MiB"
    assert stated["control body"].startswith(f"{limits.message_bytes >> 20} MiB")
    assert stated["manifest"] == f"{orders.MANIFEST_BYTES >> 20} MiB"
    assert stated["gradient norm"] == f"{limits.gradient_norm:g}"
    assert stated["a control request, until its answer"].startswith(f"{limits.request_seconds:g} s")
    assert stated["a transfer without a byte of progress"].startswith(f"{limits.progress_seconds:g} s")
    assert config.MinerLimits().model_parameters == 2 * 10**9
    assert stated["model"].startswith("2,000,000,000 parameters")


def test_protocol_document_describes_the_vectors() -> None:
    text = section("Golden vectors")
    for name in ("protocol.json", "miner.json"):
        assert all(f"`{key}`" in text for key in json.loads((ROOT / "tests" / "golden" / name).read_text("utf-8"))), (
            name
        )


def test_links_inside_the_protocol_document_lead_somewhere() -> None:
    headings = re.findall(r"^#+ (.+)$", TEXT, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", TEXT)) <= anchors


@pytest.mark.parametrize("value", ["a" * 64 + "\n", "A" * 64, "a" * 63, "a" * 65, "٣" * 64])
def test_a_digest_is_exactly_64_hex_characters(value: str) -> None:
    message = {"digest": value, "have": 0}
    with pytest.raises(ProtocolError):
        messages.decode(msgspec.json.encode(message), messages.Lack)
