"""Names that a run gives and this version does not know: one line, exit code 2, before anything is opened."""

import pytest

from fedgpt2.config import Aggregation, Axons, Codec, ValidatorConfig
from fedgpt2.errors import UsageError
from fedgpt2.event_loop import Stop
from fedgpt2.validator.program import run_validator


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"codec": Codec(state="zip")}, "--codec.state zip: no such codec; one of fp32, bf16"),
        ({"codec": Codec(gradient="zip")}, "--codec.gradient zip: no such codec; one of fp32, bf16"),
        ({"aggregation": Aggregation(rule="zip")}, "--aggregation.rule zip: no such rule; one of mean"),
    ],
)
async def test_an_unknown_name_is_one_line(settings, said) -> None:
    config = ValidatorConfig(device="cpu", axons=Axons(addresses=("8091",)), **settings)
    with pytest.raises(UsageError, match=said) as caught:
        await run_validator(config, Stop(), None)
    assert caught.value.exit_code == 2
