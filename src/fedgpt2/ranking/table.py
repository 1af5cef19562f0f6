"""The ranking: a pure function of the records of the rounds.

`advance` adds one round. The live ranking and a replay make the same calls in the same order, so they agree to the bit.
The order of the miners in a record does not matter.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

import msgspec

from fedgpt2.config import Ranking
from fedgpt2.protocol.round_record import MinerRanking, RoundRecord
from fedgpt2.ranking.contribution_share import bound, contribution_shares, round_contribution
from fedgpt2.ranking.data_authenticity import AuditContext, AuditHistory, audit_signal, authenticity, update_audits
from fedgpt2.ranking.outcomes import MinerOutcome, RoundOutcome, common_failure, round_outcomes, scaled
from fedgpt2.ranking.payout import pay, pay_shares, score, to_u16
from fedgpt2.ranking.rating import INITIAL, Rating, places, update_ratings
from fedgpt2.ranking.reliability import Average, Conduct, update_conduct
from fedgpt2.types import Hotkey

__all__ = [
    "REVISION",
    "Entry",
    "History",
    "Rank",
    "Standing",
    "Table",
    "advance",
    "fold",
    "ranks",
    "rating_lines",
    "rule_of",
    "with_ranking",
]

REVISION = 6  # of the rule; raise it with each change after which equal evidence and settings rank otherwise

_TRUSTED = 0.5  # authenticity below which a miner does not keep the credit of a cluster


@dataclass(frozen=True)
class Standing:
    """All that is stored of a miner between rounds."""

    rating: Rating = INITIAL
    conduct: Conduct = field(default_factory=Conduct)
    contribution: Average = field(default_factory=Average)  # of its own, in units of |g|
    audits: AuditHistory = field(default_factory=AuditHistory)
    trusted: float = 1.0  # authenticity when it was last compared
    comparisons: int = 0  # rounds in which it was compared


@dataclass(frozen=True)
class Table:
    """Every miner that ever had an order, after `round`; `rule` holds the settings of that round."""

    round: int = 0
    standings: Mapping[Hotkey, Standing] = field(default_factory=dict)
    rule: Ranking = field(default_factory=Ranking)


@dataclass(frozen=True)
class Entry:
    """What a round did to a miner: the part of its MinerRecord that the ranking fills."""

    verdict: RoundOutcome
    score: float | None
    after: Rating
    pay: float  # share of the payout
    ranking: MinerRanking


@dataclass(frozen=True)
class Rank:
    """A line of the table."""

    rank: int
    hotkey: Hotkey
    rating: float  # mean
    sigma: float
    ordinal: float  # mean less CAUTION sigma
    score: float  # ordinal x reliability x share x trusted, at least 0
    weight: float  # share of the payout
    weight_u16: int
    reliability: float
    share: float
    presence: float
    tier: str  # paid | shadow
    clean_rounds: int
    rounds: int
    refusals: int
    trusted: float = 1.0


@dataclass(frozen=True)
class History:
    """The table after the last round, and the entries of each round."""

    table: Table
    entries: tuple[tuple[int, Mapping[Hotkey, Entry]], ...] = ()  # round, then by hotkey


def rule_of(record: RoundRecord, changes: Mapping[str, object] | None = None) -> Ranking:
    """The settings the round was ranked by, with `changes`.

    Raises msgspec.ValidationError for a value of the wrong type.
    """
    return msgspec.convert({**record.evidence.rule, **(changes or {})}, Ranking)


def advance(table: Table, record: RoundRecord, rule: Ranking | None = None) -> tuple[Table, dict[Hotkey, Entry]]:
    """The table after one more round, and the entry of each miner that had an order.

    `rule` replaces the settings in the record. Raises ValueError unless the round is a later one.
    """
    rule = rule or rule_of(record)
    if record.round <= table.round:
        raise ValueError(f"round {record.round} after round {table.round}")
    outcomes = round_outcomes(record, _distrusted(table, record))
    standings = _with_conduct(table, outcomes, rule, common_failure=common_failure(record))
    before = {hotkey: standings[hotkey].rating for hotkey in outcomes}
    standings |= _with_contributions(standings, outcomes, rule, record)
    standings |= _with_audits(standings, outcomes, record)
    scored = _scored(outcomes)
    trusted = authenticity(_contexts(standings, record, scored))
    shares = contribution_shares({hotkey: standings[hotkey].contribution.value(0.0) for hotkey in scored})
    outcomes = scaled(outcomes, {hotkey: share * trusted[hotkey] for hotkey, share in shares.items()})
    standings |= {hotkey: replace(standings[hotkey], trusted=part) for hotkey, part in trusted.items()}
    compared, reached = _compare(standings, outcomes, rule)
    after = Table(record.round, standings | compared, rule)
    return after, _entries(after, outcomes, before, reached)


def _with_conduct(
    table: Table, outcomes: Mapping[Hotkey, MinerOutcome], rule: Ranking, *, common_failure: bool
) -> dict[Hotkey, Standing]:
    """Every miner's standing with this round's conduct."""
    known = {**dict.fromkeys(outcomes, Standing()), **table.standings}
    return {
        hotkey: replace(
            standing,
            conduct=update_conduct(standing.conduct, outcomes.get(hotkey), rule.memory, common_failure=common_failure),
        )
        for hotkey, standing in sorted(known.items())
    }


def _with_contributions(
    standings: Mapping[Hotkey, Standing], outcomes: Mapping[Hotkey, MinerOutcome], rule: Ranking, record: RoundRecord
) -> dict[Hotkey, Standing]:
    """The standings of the miners whose contribution was measured, with that added to their average."""
    unit = _gradient_norm(record)
    found = {hotkey: round_contribution(outcome, unit) for hotkey, outcome in outcomes.items()}
    before = [standings[hotkey].contribution for hotkey in _scored(outcomes)]
    most = bound([average.value(0.0) for average in before if average.weight])
    return {
        hotkey: replace(
            standings[hotkey],
            contribution=standings[hotkey].contribution.add(min(most, max(-most, value)), rule.memory),
        )
        for hotkey, value in found.items()
        if value is not None
    }


def _gradient_norm(record: RoundRecord) -> float:
    return record.evidence.products.gradient_norm if record.evidence.products else 0.0


def _scored(outcomes: Mapping[Hotkey, MinerOutcome]) -> list[Hotkey]:
    """The miners that are compared by a score."""
    return [hotkey for hotkey, outcome in outcomes.items() if outcome.score is not None]


def _contexts(
    standings: Mapping[Hotkey, Standing], record: RoundRecord, among: Collection[Hotkey]
) -> dict[Hotkey, AuditContext]:
    """Audits and assigned tokens of the round's miners that are `among` these."""
    tokens = {miner.hotkey: miner.tokens for miner in record.miners}
    return {hotkey: AuditContext(standings[hotkey].audits, tokens[hotkey]) for hotkey in sorted(tokens.keys() & among)}


def _distrusted(table: Table, record: RoundRecord) -> set[Hotkey]:
    """The round's miners that, by earlier audits, do not compute on their assigned text."""
    parts = authenticity(_contexts(table.standings, record, table.standings))
    return {hotkey for hotkey, part in parts.items() if part < _TRUSTED}


def _with_audits(
    standings: Mapping[Hotkey, Standing], outcomes: Mapping[Hotkey, MinerOutcome], record: RoundRecord
) -> dict[Hotkey, Standing]:
    """The standings of the miners audited in this round, with the result."""
    unit = _gradient_norm(record)
    found = {audit.hotkey: audit_signal(outcomes[audit.hotkey], audit, unit) for audit in record.evidence.audits}
    signals = {hotkey: value for hotkey, value in found.items() if value is not None}
    contexts = _contexts(standings, record, outcomes)
    histories = update_audits(contexts, signals, _scored(outcomes), record.round)
    return {hotkey: replace(standings[hotkey], audits=history) for hotkey, history in histories.items()}


def _compare(
    standings: Mapping[Hotkey, Standing], outcomes: Mapping[Hotkey, MinerOutcome], rule: Ranking
) -> tuple[dict[Hotkey, Standing], dict[Hotkey, int]]:
    """The standings of the miners compared in this round, with the new rating; and the place of each."""
    scores = {hotkey: outcome.score for hotkey, outcome in outcomes.items() if outcome.score is not None}
    last = [hotkey for hotkey, outcome in outcomes.items() if outcome.last]
    ratings = {hotkey: standing.rating for hotkey, standing in standings.items()}
    rated = update_ratings(ratings, scores, last, rule.tau)
    changed = {
        hotkey: replace(standings[hotkey], rating=rating, comparisons=standings[hotkey].comparisons + 1)
        for hotkey, rating in rated.items()
    }
    return changed, places(scores, last) if rated else {}


def _entries(
    table: Table,
    outcomes: Mapping[Hotkey, MinerOutcome],
    before: Mapping[Hotkey, Rating],
    reached: Mapping[Hotkey, int],
) -> dict[Hotkey, Entry]:
    shares = _pay_shares(table)
    return {
        hotkey: Entry(
            verdict=outcome.verdict,
            score=outcome.score,
            after=table.standings[hotkey].rating,
            pay=shares[hotkey],
            ranking=_ranking(table.standings[hotkey], outcome, before[hotkey], reached.get(hotkey), len(reached)),
        )
        for hotkey, outcome in outcomes.items()
    }


def _ranking(
    standing: Standing, outcome: MinerOutcome, before: Rating, place: int | None, compared: int
) -> MinerRanking:
    credit, conduct = outcome.credit, standing.conduct
    return MinerRanking(
        keeper=outcome.keeper,
        raw=credit.raw if credit else None,
        added=credit.added if credit else None,
        own=credit.residual_fraction if credit else None,
        proven=_mean(standing.contribution),
        grounded=_mean(standing.audits.mean),
        place=place,
        compared=compared,
        rating_before=before.mu,
        sigma_before=before.sigma,
        reliability=conduct.reliability.value(1.0),
        share=conduct.share.value(1.0),
        trusted=standing.trusted,
    )


def _mean(average: Average) -> float | None:
    return average.value(0.0) if average.weight else None


def _score(standing: Standing) -> float:
    return score(standing.rating, standing.conduct, standing.trusted)


def _pay_shares(table: Table) -> dict[Hotkey, float]:
    pays = [pay(_score(standing), standing.conduct, table.rule) for standing in table.standings.values()]
    return dict(zip(table.standings, pay_shares(pays), strict=True))


def with_ranking(record: RoundRecord, table: Table, entries: Mapping[Hotkey, Entry]) -> RoundRecord:
    """The record with the ranking of each miner filled in, by what `advance` returned."""
    lines = {line.hotkey: line.rank for line in ranks(table)}
    miners = [
        msgspec.structs.replace(
            miner,
            rank=lines[miner.hotkey],
            score=entry.score,
            rating=entry.after.mu,
            sigma=entry.after.sigma,
            pay=entry.pay,
            verdict=entry.verdict.value,
            ranking=entry.ranking,
        )
        for miner in record.miners
        for entry in (entries[miner.hotkey],)
    ]
    return msgspec.structs.replace(record, miners=tuple(miners))


def ranks(table: Table) -> list[Rank]:
    """The lines of the table, best score first; equal scores, above all those of 0, in the order of `_tie_break`."""
    scores = {hotkey: _score(standing) for hotkey, standing in table.standings.items()}
    shares = _pay_shares(table)
    chain = dict(zip(shares, to_u16(list(shares.values())), strict=True))
    ordered = sorted(table.standings, key=lambda hotkey: (-scores[hotkey], *_tie_break(hotkey, table)))
    return [
        _rank(place, hotkey, table, scores[hotkey], shares[hotkey], chain[hotkey])
        for place, hotkey in enumerate(ordered, 1)
    ]


def _tie_break(hotkey: Hotkey, table: Table) -> tuple[bool, bool, float, str]:
    """Miners with mostly faults, copies, replays or failed audits come last, before them those never compared."""
    standing = table.standings[hotkey]
    sound = standing.conduct.reliability.value(1.0) * standing.conduct.share.value(1.0) * standing.trusted
    return sound < 0.5, not standing.comparisons, -standing.rating.ordinal, hotkey


def _rank(place: int, hotkey: Hotkey, table: Table, score: float, weight: float, u16: int) -> Rank:
    standing = table.standings[hotkey]
    conduct = standing.conduct
    return Rank(
        rank=place,
        hotkey=hotkey,
        rating=standing.rating.mu,
        sigma=standing.rating.sigma,
        ordinal=standing.rating.ordinal,
        score=score,
        weight=weight,
        weight_u16=u16,
        reliability=conduct.reliability.value(1.0),
        share=conduct.share.value(1.0),
        presence=conduct.presence.value(0.0),
        tier="paid" if conduct.clean >= table.rule.clean_rounds else "shadow",
        clean_rounds=conduct.clean,
        rounds=conduct.orders,
        refusals=conduct.refusals,
        trusted=standing.trusted,
    )


def rating_lines(table: Table) -> dict[Hotkey, bytes]:
    """Each miner's line of the table, as JSON for the ledger."""
    return {line.hotkey: msgspec.json.encode(line) for line in ranks(table)}


def fold(records: Iterable[RoundRecord], rule: Ranking | None = None) -> History:
    """The ranking of all rounds in order, by `rule` or by the settings in each record.

    Raises ValueError for rounds out of order.
    """
    table, entries = Table(rule=rule or Ranking()), []
    for record in records:
        table, made = advance(table, record, rule)
        entries.append((record.round, made))
    return History(table, tuple(entries))
