"""What a run that goes on remembers of the rounds of its ledger, and that nobody waits for it."""

import asyncio
import threading

import torch

from fedgpt2.config import Axons, Wallet
from fedgpt2.event_loop import Stop
from fedgpt2.observe.board import Board, Recorder
from fedgpt2.ranking.table import Table
from fedgpt2.validator import program
from fedgpt2.validator.training_loop import build_context

from .conftest import MINERS, SIGNER, answer, gone, run_row, with_settings, wrong_order


async def test_the_ranking_goes_on_to_the_bit(running, opened, config, corpus):
    with running(config, {MINERS[0]: answer, MINERS[1]: wrong_order, MINERS[2]: gone}) as run:
        for number in (1, 2, 3):
            await run_row(run, number, 0)
        live = run.ranking.table
    with opened(config) as (directory, training, _):
        past = build_context(config, directory, training, corpus, SIGNER, None, None, Stop())
    assert (past.ranking.table, past.ranking.reranked) == (live, 0)
    assert past.suspensions.__dict__ == run.suspensions.__dict__


async def test_rounds_that_were_taken_back_are_forgotten(running, opened, config, corpus):
    config = with_settings(config, checkpoint={"every": 5})
    with running(config, {MINERS[0]: answer}) as run:
        await run_row(run, 1, 0)
    with opened(config) as (directory, training, _):
        past = build_context(config, directory, training, corpus, SIGNER, None, None, Stop())
        assert past.ranking.table == Table()


async def test_a_validator_that_still_remembers_is_stopped_at_once(config, tmp_path, monkeypatch):
    began, release, stop = threading.Event(), threading.Event(), Stop()

    def long(*parts):
        began.set()
        release.wait(60)
        return build_context(*parts)

    monkeypatch.setattr(program, "build_context", long)
    monkeypatch.setattr(program, "prepare", lambda device, threads: torch.device(device))
    config = with_settings(
        config, axons=Axons(addresses=("1",)), wallet=Wallet(path=str(tmp_path)), data={"cache": str(tmp_path)}
    )
    running = asyncio.create_task(program.run_validator(config, stop, Recorder(Board())))
    assert await asyncio.to_thread(began.wait, 60)
    stop.set()
    try:
        assert await asyncio.wait_for(running, 5) == 0
    finally:
        release.set()
