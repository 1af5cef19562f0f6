"""Orders are a function of the round: a restarted validator writes the same bytes."""

import pytest
from bittensor.sp_core import Keypair

from fedgpt2.identity.signing import Signer, open_envelope
from fedgpt2.link.base import ConnectedMiner
from fedgpt2.protocol.messages import BlobRef, Order

from .conftest import MINERS, order_book, with_settings

PARENT = "2" * 64
STATE = BlobRef(digest="4" * 64, length=1000, codec="fp32")
CHOSEN = [(ConnectedMiner(hotkey, f"127.0.0.1:{9000 + slot}"), slot) for slot, hotkey in enumerate(MINERS[:3])]


def names(book, number=3, attempt=0, parent=PARENT, state=STATE, chosen=CHOSEN):
    return [issued.work_id for issued in book.write(number, attempt, parent, state, chosen)]


def test_the_same_round_is_the_same_orders(corpus, config):
    first, again = (order_book(corpus, config).write(3, 0, PARENT, STATE, CHOSEN) for _ in range(2))
    assert [t.envelope.payload for t in first] == [t.envelope.payload for t in again]
    assert [t.work_id for t in first] == [t.work_id for t in again]
    assert [t.envelope.signature for t in first] != [t.envelope.signature for t in again]  # sr25519 draws; names do not


def test_who_else_is_there_and_in_what_order_changes_nothing(corpus, config):
    book = order_book(corpus, config)
    alone = [names(book, chosen=[pair])[0] for pair in CHOSEN[::-1]]
    assert alone[::-1] == names(book)


CHANGES = {
    "round": {"number": 4},
    "attempt": {"attempt": 1},
    "parent": {"parent": "3" * 64},
    "state": {"state": BlobRef(digest="5" * 64, length=1000, codec="fp32")},
    "slot": {"chosen": [(CHOSEN[0][0], 3)]},
    "miner": {"chosen": [(CHOSEN[1][0], 0)]},
}


@pytest.mark.parametrize("case", CHANGES)
def test_another_round_is_another_order(corpus, config, case):
    book = order_book(corpus, config)
    assert names(book)[0] not in names(book, **CHANGES[case])


def test_other_settings_are_other_orders(corpus, config):
    book = order_book(corpus, config)
    others = [
        order_book(corpus, config, run_id="cd" * 32),
        order_book(corpus, config, signer=Signer(Keypair.create_from_uri("//Other"))),
        order_book(corpus, with_settings(config, data={"windows": 2})),
        order_book(corpus, with_settings(config, round={"deadline": 5.0})),
    ]
    found = {names(other)[0] for other in [book, *others]}
    assert len(found) == 5


def test_an_order_says_what_its_miner_needs(corpus, config):
    (issued, *_) = order_book(corpus, config).write(3, 2, PARENT, STATE, CHOSEN)
    order = open_envelope(issued.envelope, "order", Order, signer=issued.order.sender)
    assert order == issued.order
    assert (order.round, order.attempt, order.parent, order.state) == (3, 2, PARENT, (STATE,))
    assert (order.receiver, order.model, order.answer_codecs) == (MINERS[0], config.model.shape, ("fp32",))
    assert order.assignment.manifest == corpus.manifest.digest()
    assert order.budget_seconds == config.round.deadline
    assert issued.tokens == order.n_windows * 64 == 4 * 64
    share = corpus.assign(3, 0, 4)
    assert (order.assignment.pages, order.assignment.windows) == (share.pages, share.windows)
