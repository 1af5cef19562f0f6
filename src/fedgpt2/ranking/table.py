"""The ranking: a pure function of the rounds' evidence, and nothing else.

`advance` adds one round; the live ranking and a replay from the ledger are the same calls in the same order, so they
agree to the bit. The order of the miners in the evidence does not matter.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from statistics import median

from fedgpt2.config import Ranking
from fedgpt2.ranking.audit import Known, Told, grounding, groundings, heard
from fedgpt2.ranking.evidence import Evidence, rule_of
from fedgpt2.ranking.marks import Mark, marks, waived
from fedgpt2.ranking.payout import merit, pay, to_u16, weights
from fedgpt2.ranking.proven import bound, proof, weighed
from fedgpt2.ranking.rating import Rating, newcomer, places, play
from fedgpt2.ranking.reliability import Average, Conduct, observe
from fedgpt2.types import Hotkey

__all__ = ["REVISION", "Entry", "History", "Rank", "Standing", "Table", "advance", "fold", "ranks"]

REVISION = 5  # of the rule: one more with each change after which equal evidence and settings rank otherwise

_TRUSTED = 0.5  # of a grounding: with less a miner is not the keeper of what others sent, too


@dataclass(frozen=True)
class Standing:
    """All that is remembered of a miner."""

    rating: Rating
    conduct: Conduct = field(default_factory=Conduct)
    score: Average = field(default_factory=Average)  # of its rounds, for ranking.smooth
    proven: Average = field(default_factory=Average)  # what it adds of its own, as parts of the gradient's length
    grounded: Told = field(default_factory=Told)  # what it does for its own text beyond any
    trusted: float = 1.0  # what part of its credit audits left it, when it was last compared
    matches: int = 0  # rounds in which it was compared with others


@dataclass(frozen=True)
class Table:
    """Every miner ever given an order, after `round`. `rule` is what it was last added to by."""

    round: int = 0
    standings: Mapping[Hotkey, Standing] = field(default_factory=dict)
    rule: Ranking = field(default_factory=Ranking)


@dataclass(frozen=True)
class Entry:
    """One miner's round: what a receipt says of it."""

    mark: Mark
    before: Rating
    after: Rating
    place: int | None  # among those compared, 1 the best; None for one that was not
    compared: int  # how many were
    proven: float | None  # what it has added of its own so far, on average; None before the first time
    grounded: float | None  # what it has done for its own text, as a part of what others show; None before an audit
    reliability: float
    share: float
    trusted: float  # what part of its credit audits leave it
    weight: float  # of the payout, after the round


@dataclass(frozen=True)
class Rank:
    """A line of the table."""

    rank: int
    hotkey: Hotkey
    rating: float  # mean
    sigma: float
    ordinal: float  # mean less ranking.caution sigma
    score: float  # ordinal x reliability x share x trusted, or 0
    weight: float  # of the payout
    weight_u16: int
    reliability: float
    share: float
    presence: float
    tier: str  # paid | shadow
    clean_rounds: int
    rounds: int
    refusals: int
    trusted: float = 1.0  # what part of its credit audits leave it


@dataclass(frozen=True)
class History:
    """The table after the last round, and each round's entries."""

    table: Table
    entries: tuple[tuple[int, Mapping[Hotkey, Entry]], ...] = ()  # round, then by hotkey


def advance(table: Table, evidence: Evidence, rule: Ranking | None = None) -> tuple[Table, dict[Hotkey, Entry]]:
    """The table after one more round, and what the round did to each miner that was given an order.

    `rule` replaces the settings that the evidence names. Raises ValueError unless the round is a later one.
    """
    rule = rule or rule_of(evidence)
    if evidence.round <= table.round:
        raise ValueError(f"round {evidence.round} after round {table.round}")
    made, bad = marks(evidence, rule, _distrusted(table, evidence)), waived(evidence, rule)
    fresh = Standing(newcomer(rule))
    standings = {
        hotkey: replace(s, conduct=observe(s.conduct, made.get(hotkey), rule.memory, bad_round=bad))
        for hotkey, s in sorted({**dict.fromkeys(made, fresh), **table.standings}.items())
    }
    before = {hotkey: standings[hotkey].rating for hotkey in made}
    standings = {**standings, **_prove(standings, made, rule, evidence)}
    standings = {**standings, **_audited(standings, made, evidence)}
    if rule.score == "proven":
        proven = {hotkey: standings[hotkey].proven.value(0.0) for hotkey in made}
        trusted = groundings(_audits(standings, evidence, _scored(made)))
        made = weighed(made, proven, trusted)
        standings |= {hotkey: replace(standings[hotkey], trusted=part) for hotkey, part in trusted.items()}
    standings, reached = _compare(standings, made, rule, evidence)
    after = Table(evidence.round, standings, rule)
    return after, _entries(after, made, before, reached)


def _prove(
    standings: Mapping[Hotkey, Standing], made: Mapping[Hotkey, Mark], rule: Ranking, evidence: Evidence
) -> dict[Hotkey, Standing]:
    """The standings of those of whom the round says what they add of their own, with that."""
    unit = evidence.products.gradient_norm if evidence.products else 0.0
    found = {hotkey: proof(mark, unit) for hotkey, mark in made.items()}
    before = [standings[hotkey].proven for hotkey in _scored(made)]
    most = bound([proven.value(0.0) for proven in before if proven.weight])
    return {
        hotkey: replace(
            standings[hotkey], proven=standings[hotkey].proven.add(min(most, max(-most, value)), rule.memory)
        )
        for hotkey, value in found.items()
        if value is not None
    }


def _scored(made: Mapping[Hotkey, Mark]) -> list[Hotkey]:
    """Those that are compared."""
    return [hotkey for hotkey, mark in made.items() if mark.score is not None]


def _audits(standings: Mapping[Hotkey, Standing], evidence: Evidence, among: Collection[Hotkey]) -> dict[Hotkey, Known]:
    """What audits have told of the round's miners that are `among` these."""
    given = {Hotkey(miner.hotkey): miner.tokens for miner in evidence.miners}
    return {hotkey: Known(standings[hotkey].grounded, given[hotkey]) for hotkey in sorted(given.keys() & among)}


def _distrusted(table: Table, evidence: Evidence) -> set[Hotkey]:
    """Those of the round's miners of whom earlier audits say that they do not use their text."""
    parts = groundings(_audits(table.standings, evidence, table.standings))
    return {hotkey for hotkey, part in parts.items() if part < _TRUSTED}


def _audited(
    standings: Mapping[Hotkey, Standing], made: Mapping[Hotkey, Mark], evidence: Evidence
) -> dict[Hotkey, Standing]:
    """The standings of those whose gradient was tried on their own text, with what came of it."""
    unit = evidence.products.gradient_norm if evidence.products else 0.0
    found = {Hotkey(audit.hotkey): grounding(made[Hotkey(audit.hotkey)], audit, unit) for audit in evidence.audits}
    shown = {hotkey: value for hotkey, value in found.items() if value is not None}
    told = heard(_audits(standings, evidence, made), shown, _scored(made), evidence.round)
    return {hotkey: replace(standings[hotkey], grounded=each) for hotkey, each in told.items()}


def _compare(
    standings: dict[Hotkey, Standing], made: Mapping[Hotkey, Mark], rule: Ranking, evidence: Evidence
) -> tuple[dict[Hotkey, Standing], dict[Hotkey, int]]:
    """Let the round's miners play; the standings after it and each player's place."""
    scores = {hotkey: mark.score for hotkey, mark in made.items() if mark.score is not None}
    standings = dict(standings)
    if rule.smooth > 1 and scores:
        for hotkey, score in _centred(scores, evidence).items():
            standing = standings[hotkey]
            standings[hotkey] = replace(standing, score=standing.score.add(score, rule.smooth))
            scores[hotkey] = standings[hotkey].score.value(0.0)
    losers = [hotkey for hotkey, mark in made.items() if mark.loses]
    rated = play({hotkey: standing.rating for hotkey, standing in standings.items()}, scores, losers, rule)
    for hotkey, rating in rated.items():
        standing = standings[hotkey]
        standings[hotkey] = replace(standing, rating=rating, matches=standing.matches + 1)
    return standings, places(scores, losers) if rated else {}


def _centred(scores: Mapping[Hotkey, float], evidence: Evidence) -> dict[Hotkey, float]:
    """Scores less their median, in units of the scoring gradient's length: so that rounds can be averaged."""
    middle = median(scores.values())
    unit = evidence.products.gradient_norm if evidence.products else 1.0
    return {hotkey: (score - middle) / (unit or 1.0) for hotkey, score in scores.items()}


def _entries(
    table: Table, made: Mapping[Hotkey, Mark], before: Mapping[Hotkey, Rating], reached: Mapping[Hotkey, int]
) -> dict[Hotkey, Entry]:
    shares = _weights(table)
    return {
        hotkey: Entry(
            mark=mark,
            before=before[hotkey],
            after=table.standings[hotkey].rating,
            place=reached.get(hotkey),
            compared=len(reached),
            proven=_known(table.standings[hotkey].proven),
            grounded=_known(table.standings[hotkey].grounded.mean),
            reliability=table.standings[hotkey].conduct.reliability.value(1.0),
            share=table.standings[hotkey].conduct.share.value(1.0),
            trusted=table.standings[hotkey].trusted,
            weight=shares[hotkey],
        )
        for hotkey, mark in made.items()
    }


def _known(average: Average) -> float | None:
    return average.value(0.0) if average.weight else None


def _weights(table: Table) -> dict[Hotkey, float]:
    pays = [pay(_merit(standing, table.rule), standing.conduct, table.rule) for standing in table.standings.values()]
    return dict(zip(table.standings, weights(pays), strict=True))


def _merit(standing: Standing, rule: Ranking) -> float:
    trusted = standing.trusted if rule.score == "proven" else 1.0  # no other score knows of audits
    return merit(standing.rating, standing.conduct, trusted, rule)


def ranks(table: Table) -> list[Rank]:
    """The table's lines, best first: by score; equal ones, most of all those of 0, by what `_better` says."""
    scores = {hotkey: _merit(standing, table.rule) for hotkey, standing in table.standings.items()}
    shares = _weights(table)
    chain = dict(zip(shares, to_u16(list(shares.values())), strict=True))
    ordered = sorted(table.standings, key=lambda hotkey: (-scores[hotkey], *_better(hotkey, table)))
    return [
        _rank(place, hotkey, table, scores[hotkey], shares[hotkey], chain[hotkey])
        for place, hotkey in enumerate(ordered, 1)
    ]


def _better(hotkey: Hotkey, table: Table) -> tuple[bool, bool, float, str]:
    """Those whose rounds were mostly faults, copies, replays or without their text come last.

    Before them comes who was never compared.
    """
    standing = table.standings[hotkey]
    sound = standing.conduct.reliability.value(1.0) * standing.conduct.share.value(1.0) * standing.trusted
    return sound < 0.5, not standing.matches, -standing.rating.ordinal(table.rule.caution), hotkey


def _rank(place: int, hotkey: Hotkey, table: Table, score: float, weight: float, u16: int) -> Rank:
    standing, rule = table.standings[hotkey], table.rule
    conduct = standing.conduct
    return Rank(
        rank=place,
        hotkey=hotkey,
        rating=standing.rating.mu,
        sigma=standing.rating.sigma,
        ordinal=standing.rating.ordinal(rule.caution),
        score=score,
        weight=weight,
        weight_u16=u16,
        reliability=conduct.reliability.value(1.0),
        share=conduct.share.value(1.0),
        presence=conduct.presence.value(0.0),
        tier="paid" if conduct.clean >= rule.clean_rounds else "shadow",
        clean_rounds=conduct.clean,
        rounds=conduct.orders,
        refusals=conduct.refusals,
        trusted=standing.trusted,
    )


def fold(rounds: Iterable[Evidence], rule: Ranking | None = None) -> History:
    """The ranking from its evidence, rounds in order; by `rule`, or each round by the settings it names itself.

    Raises ValueError for rounds that are out of order.
    """
    table, entries = Table(rule=rule or Ranking()), []
    for evidence in rounds:
        table, made = advance(table, evidence, rule)
        entries.append((evidence.round, made))
    return History(table, tuple(entries))
