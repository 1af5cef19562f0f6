"""Between the record of a round and the evidence that the ranking computes with."""

from collections.abc import Mapping
from dataclasses import asdict

import msgspec

from fedgpt2.protocol import round_record as record_types
from fedgpt2.protocol.round_record import MinerRanking, RoundRecord
from fedgpt2.ranking.evidence import Audit, Evidence, Free, MinerEvidence, Products
from fedgpt2.ranking.table import Entry, Table, ranks
from fedgpt2.types import Hotkey

__all__ = ["evidence_of", "products_record", "rating_lines", "with_ranking"]


def evidence_of(record: RoundRecord) -> Evidence:
    """What the ranking looks at in a record."""
    found = record.evidence
    names = (
        "hotkey",
        "status",
        "reason",
        "fault",
        "digest",
        "norm",
        "tokens",
        "committed",
        "seconds",
        "cluster",
        "weight",
    )
    return Evidence(
        round=record.round,
        revision=found.revision,
        applied=record.applied,
        reason=record.reason,
        rule=found.rule,
        picks=found.picks,
        miners=tuple(MinerEvidence(**{name: getattr(miner, name) for name in names}) for miner in record.miners),
        products=_products(found.products) if found.products else None,
        audits=tuple(msgspec.convert(msgspec.to_builtins(audit), Audit) for audit in found.audits),
    )


def _products(stored: record_types.Products) -> Products:
    return Products(
        miners=stored.miners,
        free=tuple(msgspec.convert({"kind": each.kind, "age": each.age}, Free) for each in stored.baseline),
        gradient_norm=stored.gradient_norm,
        gradient=stored.gradient,
        gradient_free=stored.gradient_baseline,
        contributions_free=stored.contributions_baseline,
        free_gram=stored.baseline_gram,
        gram=stored.gram,
    )


def products_record(measured: Products) -> record_types.Products:
    """The record of what was measured."""
    return record_types.Products(
        miners=tuple(map(Hotkey, measured.miners)),
        baseline=tuple(record_types.BaselineVector(kind=each.kind, age=each.age) for each in measured.free),
        gradient_norm=measured.gradient_norm,
        gradient=measured.gradient,
        gradient_baseline=measured.gradient_free,
        contributions_baseline=measured.contributions_free,
        baseline_gram=measured.free_gram,
        gram=measured.gram,
    )


def with_ranking(record: RoundRecord, table: Table, entries: Mapping[Hotkey, Entry]) -> RoundRecord:
    """The record with each miner's ranking after the round."""
    places = {line.hotkey: line.rank for line in ranks(table)}
    miners = tuple(_ranked(miner, places[miner.hotkey], entries[miner.hotkey]) for miner in record.miners)
    return msgspec.structs.replace(record, miners=miners)


def _ranked(miner: record_types.MinerRecord, rank: int, entry: Entry) -> record_types.MinerRecord:
    credit = entry.mark.credit
    return msgspec.structs.replace(
        miner,
        rank=rank,
        score=entry.mark.score,
        rating=entry.after.mu,
        sigma=entry.after.sigma,
        pay=entry.weight,
        verdict=entry.mark.verdict.value,
        ranking=MinerRanking(
            keeper=entry.mark.keeper,
            raw=credit.raw if credit else None,
            added=credit.added if credit else None,
            own=credit.own if credit else None,
            proven=entry.proven,
            grounded=entry.grounded,
            place=entry.place,
            compared=entry.compared,
            rating_before=entry.before.mu,
            sigma_before=entry.before.sigma,
            reliability=entry.reliability,
            share=entry.share,
            trusted=entry.trusted,
        ),
    )


def rating_lines(table: Table) -> dict[Hotkey, bytes]:
    """Each miner's line of the ranking, as JSON for the ledger."""
    return {line.hotkey: msgspec.json.encode(asdict(line)) for line in ranks(table)}
