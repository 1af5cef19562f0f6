"""Whole exchanges over real sockets: order, state, gradient, receipt."""

import threading

import pytest
import torch

from fedgpt2.errors import Reason, Refused
from fedgpt2.gradient.strategy import Result
from fedgpt2.model.gpt2 import GPT2, initialise
from fedgpt2.protocol.messages import Failure

from .conftest import EXACT, SHAPE


def expected(corpus, seed=1, round=0, slot=0, n=4):
    """The gradient and result the model itself gives."""
    weights = initialise(SHAPE, seed)
    out = weights.empty_like()
    windows = corpus.windows(corpus.assign(round, slot, n))
    return out.flat, EXACT(GPT2(SHAPE, weights), windows, out=out, stop=threading.Event())


async def test_a_whole_exchange_gives_the_models_own_gradient(rig, corpus):
    async with rig() as miner:
        validator = miner.validator()
        info = await validator.client.introduce()
        assert info.hotkey == validator.miner.hotkey
        order = validator.order()
        work = await validator.ask(order)
        contribution = await validator.answer(work)
        gradient, result = expected(corpus)
        assert torch.equal(await validator.fetch(contribution), gradient)
        assert contribution.claimed_loss == pytest.approx(result.loss, abs=1e-6)
        assert (contribution.tokens, contribution.work_id, contribution.parent) == (4 * 16, work, order.parent)
        await validator.client.deliver_receipt(validator.receipt(work, order))
        assert any("admitted" in line and "weight 0.250" in line for line in miner.said)


async def test_rounds_follow_each_other_in_the_same_buffers(rig, corpus):
    async with rig() as miner:
        validator = miner.validator()
        for round in range(3):
            order = validator.order(round, seed=round, slot=round)
            work = await validator.ask(order)
            gradient = await validator.fetch(await validator.answer(work))
            assert torch.equal(gradient, expected(corpus, seed=round, round=round, slot=round)[0])


async def test_bf16_both_ways_stays_within_the_codecs_bound(rig, corpus):
    async with rig() as miner:
        validator = miner.validator()
        rounded = initialise(SHAPE, 1)
        rounded.flat.copy_(rounded.flat.bfloat16())
        order = validator.order(state_codec="bf16", weights=rounded, answer_codecs=("martian", "bf16", "fp32"))
        contribution = await validator.answer(await validator.ask(order))
        assert contribution.blob.codec == "bf16"
        gradient = await validator.fetch(contribution)
        exact, _ = expected(corpus)
        assert torch.nn.functional.cosine_similarity(gradient, exact, dim=0) > 0.999


async def test_the_answer_codec_falls_back_to_one_that_fits_the_cap(rig):
    async with rig() as miner:
        validator = miner.validator()
        order = validator.order()
        cap = type(order.caps)(answer_bytes=order.state[0].length - 1)
        order = validator.order(answer_codecs=("fp32", "bf16"), caps=cap)
        assert (await validator.answer(await validator.ask(order))).blob.codec == "bf16"


async def test_the_same_order_again_gets_the_same_answer_without_computing_again(rig):
    calls = []

    def counting(model, windows, *, out, stop):
        calls.append(1)
        return EXACT(model, windows, out=out, stop=stop)

    async with rig(counting) as miner:
        validator = miner.validator()
        order = validator.order()
        work = await validator.ask(order)
        first = await validator.client.wait(work, 20)
        again, accepted = await validator.post(order)
        assert again == work
        assert accepted.lacks == ()
        assert (await validator.client.wait(work, 0)) == first
        await validator.fetch(await validator.answer(work))
        assert len(calls) == 1


async def test_what_the_miner_holds_is_not_sent_again(rig):
    async with rig() as miner:
        validator = miner.validator()
        work = await validator.ask(validator.order(0))
        await validator.answer(work)
        _, accepted = await validator.post(validator.order(1))
        assert accepted.lacks == ()
        _, accepted = await validator.post(validator.order(2, seed=5))
        assert [lack.digest for lack in accepted.lacks] == [validator.order(2, seed=5).state[0].digest]


async def test_an_answer_is_held_until_the_next_computation_and_no_longer(rig):
    async with rig() as miner:
        validator = miner.validator()
        first = await validator.answer(await validator.ask(validator.order(0)))
        work, accepted = await validator.post(validator.order(1, seed=5))
        await validator.fetch(first)  # the newer order has no state yet: the buffer still holds the older answer
        await validator.send(accepted)
        await validator.answer(work)
        with pytest.raises(Refused) as refusal:
            await validator.fetch(first)
        assert refusal.value.reason is Reason.UNKNOWN_BLOB


async def test_a_receipt_ends_the_work(rig, tmp_path):
    async with rig() as miner:
        validator = miner.validator()
        order = validator.order()
        work = await validator.ask(order)
        contribution = await validator.answer(work)
        envelope = validator.receipt(work, order)
        await validator.client.deliver_receipt(envelope)
        with pytest.raises(Refused) as refusal:
            await validator.client.wait(work, 0)
        assert refusal.value.reason is Reason.UNKNOWN_WORK
        with pytest.raises(Refused):
            await validator.fetch(contribution)
        assert envelope.signature in (tmp_path / "miner" / "receipts.jsonl").read_text()


async def test_failures_are_signed_and_typed(rig):
    def failing(model, windows, *, out, stop):
        raise RuntimeError("CUDA out of memory\nlong story")

    async with rig(failing) as miner:
        validator = miner.validator()
        failure = await validator.answer(await validator.ask(validator.order()))
        assert isinstance(failure, Failure)
        assert (failure.reason, failure.detail) == ("compute_failed", "RuntimeError: CUDA out of memory")


async def test_a_loss_that_is_no_number_is_no_contribution(rig):
    async with rig(lambda model, windows, *, out, stop: Result(float("nan"), 1)) as miner:
        validator = miner.validator()
        failure = await validator.answer(await validator.ask(validator.order()))
        assert failure.reason == "compute_failed"


async def test_another_packer_sends_what_it_likes(rig, corpus):
    from fedgpt2.miner.packer import HonestEncoder

    class Doubling(HonestEncoder):
        def pack(self, order, work_id, result, gradient):
            gradient.flat.mul_(2)
            return super().pack(order, work_id, result, gradient)

    async with rig(packer=Doubling()) as miner:
        validator = miner.validator()
        contribution = await validator.answer(await validator.ask(validator.order()))
        assert torch.equal(await validator.fetch(contribution), 2 * expected(corpus)[0])
