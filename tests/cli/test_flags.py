"""Where a setting comes from, and what a wrong one is answered with."""

import re
from pathlib import Path

import pytest

from fedgpt2.cli.flags import flags_of
from fedgpt2.cli.parsing import parse
from fedgpt2.config import MinerConfig, SimulationConfig, ValidatorConfig
from fedgpt2.errors import UsageError


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("FEDGPT2_"):
            monkeypatch.delenv(name)


def validator(*argv: str) -> ValidatorConfig:
    return parse(ValidatorConfig, argv, prog="fedgpt2 validator", about="")


def miner(*argv: str) -> MinerConfig:
    return parse(MinerConfig, argv, prog="fedgpt2 miner", about="")


def toml(folder: Path, text: str) -> str:
    file = folder / "settings.toml"
    file.write_text(text)
    return str(file)


def test_no_flags_give_the_defaults() -> None:
    assert validator() == ValidatorConfig()
    assert miner() == MinerConfig()


FOUNDING_MINER = "--wallet.name miners --wallet.hotkey M1 --device cuda:1 --axon.port 8091"
FOUNDING_VALIDATOR = "--wallet.name validator --wallet.hotkey default --device cuda:0 --axons 8091 8092"


def test_the_founding_commands_parse() -> None:
    m, v = miner(*FOUNDING_MINER.split()), validator(*FOUNDING_VALIDATOR.split())
    assert (m.wallet.name, m.wallet.hotkey, m.device, m.axon.port) == ("miners", "M1", "cuda:1", 8091)
    assert (v.wallet.name, v.device, v.axons.addresses) == ("validator", "cuda:0", ("8091", "8092"))


def test_axons_lives_beside_its_group() -> None:
    config = validator("--axons", "8091", "h:1", "--axons.accept_new", "--axons.wait_seconds", "3")
    assert config.axons.addresses == ("8091", "h:1")
    assert config.axons.accept_new
    assert config.axons.wait_seconds == 3.0
    assert validator("--axons=8091").axons.addresses == ("8091",)


@pytest.mark.parametrize(("words", "value"), [(["--run.plain"], True), (["--run.plain=false"], False), ([], False)])
def test_booleans_are_switches(words: list[str], value: bool) -> None:
    assert validator(*words).run.plain is value


def test_flag_beats_environment_beats_file_beats_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = toml(tmp_path, "[round]\ndeadline = 5\n")
    assert validator().round.deadline == 600.0
    assert validator("--config", file).round.deadline == 5.0
    monkeypatch.setenv("FEDGPT2_ROUND__DEADLINE", "7")
    assert validator("--config", file).round.deadline == 7.0
    assert validator("--round.deadline", "9", "--config", file).round.deadline == 9.0
    assert validator(f"--config={file}", "--round.deadline", "9").round.deadline == 9.0


def test_a_file_serves_both_programs(tmp_path: Path) -> None:
    file = toml(tmp_path, 'rounds = 4\ndevice = "cpu"\naxons = [8091, "h:2"]\n[axon]\nport = 3\n[wallet]\nname = "w"\n')
    assert validator("--config", file).axons.addresses == ("8091", "h:2")
    assert validator("--config", file).rounds == 4
    assert miner("--config", file).axon.port == 3
    assert miner("--config", file).device == "cpu"
    table = toml(tmp_path, '[axons]\naddresses = ["1"]\naccept_new = true\n')
    assert validator("--config", table).axons.accept_new


def test_the_file_may_be_named_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDGPT2_CONFIG", toml(tmp_path, "rounds = 4\n"))
    assert validator().rounds == 4


def test_environment_lists_and_booleans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDGPT2_AXONS__ADDRESSES", "8091 8092,h:3")
    monkeypatch.setenv("FEDGPT2_AXONS__ACCEPT_NEW", "true")
    assert validator().axons.addresses == ("8091", "8092", "h:3")
    assert validator().axons.accept_new


BAD_FLAGS = {
    "--foo 3": "unknown flag --foo",
    "--dev cpu": "unknown flag --dev; did you mean --device?",
    "--wallet.h x": "unknown flag --wallet.h; did you mean --wallet.hotkey?",
    "--axon 8091": "unknown flag --axon; did you mean --axons?",
    "--round.dea=3": "unknown flag --round.dea; did you mean --round.deadline?",
    "stray": "unexpected argument 'stray'",
    "--rounds x": "--rounds x: not a whole number",
    "--rounds 2.5": "--rounds 2.5: not a whole number",
    "--rounds": "--rounds: expected one argument",
    "--rounds -1": "--rounds -1: at least 0",
    "--round.quorum 1.5": "--round.quorum 1.5: at most 1",
    "--run.threads 100000": "--run.threads 100000: at most 1024",
    "--round.deadline soon": "--round.deadline soon: not a number",
    "--round.deadline nan": "--round.deadline nan: not a number",
    "--round.deadline .nan": "--round.deadline nan: not a finite number",
    "--round.deadline 1e400": "--round.deadline inf: not a finite number",
    f"--round.deadline {'1' * 400}": "int too large to convert to float",
    "--run.plain perhaps": "--run.plain perhaps: not true or false",
    "--axons": "--axons: expected at least one argument",
    "--config": "--config: expected a file",
    "--config /no/such/file": "--config /no/such/file: No such file or directory",
}


def test_a_name_without_a_dot_is_complained_of_as_it_was_written() -> None:
    with pytest.raises(UsageError, match=r"^unknown flag --axons; did you mean --axon"):
        miner("--axons", "8091")


@pytest.mark.parametrize(("line", "answer"), BAD_FLAGS.items())
def test_a_bad_flag_is_one_clear_line(line: str, answer: str) -> None:
    with pytest.raises(UsageError) as caught:
        validator(*line.split())
    assert str(caught.value) == answer


BAD_FILES = {
    "rounds = 'x'": "rounds = x: not a whole number",
    "rounds = true": "rounds = True: not a whole number",
    "device = 3": "device = 3: not text",
    "[round]\ndeadlin = 3": "unknown setting round.deadlin; did you mean round.deadline?",
    "round = 3": "unknown setting round; did you mean round.deadline?",
    "axons = [2.5]": "axons.addresses = 2.5: not text",
    "rounds = -3": "--rounds -3: at least 0",
    "rounds = [": "not TOML",
    f"rounds = {'1' * 5000}": "not TOML",
    "[round]\ndeadline = nan": "--round.deadline nan: not a finite number",
    "[round]\ndeadline = -inf": "--round.deadline -inf: not a finite number",
    f"[round]\ndeadline = {'1' * 400}": "--round.deadline inf: not a finite number",
}


@pytest.mark.parametrize(("text", "answer"), BAD_FILES.items())
def test_a_bad_file_is_one_clear_line(text: str, answer: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        validator("--config", toml(tmp_path, text))
    assert answer in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "answer"),
    [
        ("FEDGPT2_ROUND__DEADLIN", "3", "environment: unknown setting FEDGPT2_ROUND__DEADLIN; did you mean"),
        ("FEDGPT2_DEVIC", "cpu", "environment: unknown setting FEDGPT2_DEVIC; did you mean FEDGPT2_DEVICE?"),
        ("FEDGPT2_ROUNDZ", "3", "environment: unknown setting FEDGPT2_ROUNDZ; did you mean FEDGPT2_ROUNDS?"),
        ("FEDGPT2_AXONS", "1", "environment: unknown setting FEDGPT2_AXONS; did you mean FEDGPT2_AXONS__ADDRESSES?"),
        ("FEDGPT2_ZZZ", "1", "environment: unknown setting FEDGPT2_ZZZ"),
        ("FEDGPT2_ROUNDS", "few", "environment: --rounds few: not a whole number"),
        ("FEDGPT2_ROUND__DEADLINE", "1e400", "--round.deadline inf: not a finite number"),
        ("FEDGPT2_AXONS__ACCEPT_NEW", "perhaps", "environment: --axons.accept_new perhaps: not true or false"),
    ],
)
def test_a_bad_variable_is_one_clear_line(name: str, value: str, answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError) as caught:
        validator()
    assert str(caught.value).startswith(answer)


def test_another_programs_variable_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDGPT2_ROUND__DEADLINE", "3")
    monkeypatch.setenv("FEDGPT2_ROUNDS", "3")
    monkeypatch.setenv("FEDGPT2_WRITE_GOLDEN", "1")
    monkeypatch.setenv("FEDGPT2_JSON", "true")  # of `fedgpt2 ranking` and `bench`
    assert miner() == MinerConfig()


@pytest.mark.parametrize("settings", [MinerConfig, ValidatorConfig])
def test_every_flag_says_what_it_is(settings: type) -> None:
    flags = flags_of(settings)
    assert len({flag.name for flag in flags}) == len({flag.env for flag in flags}) == len(flags)
    assert all(flag.help and flag.kind in (str, int, float, bool) for flag in flags)


@pytest.mark.parametrize("settings", [MinerConfig, ValidatorConfig, SimulationConfig])
def test_a_help_line_is_one_short_phrase(settings: type) -> None:
    for flag in flags_of(settings):
        if flag.group != "ranking":
            assert len(flag.help) <= 90, flag
            assert not flag.help.endswith("."), flag


def shown(settings: type, word: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The flags that a help text lists."""
    with pytest.raises(SystemExit) as caught:
        parse(settings, [word], prog="fedgpt2 x", about="")
    assert caught.value.code == 0
    return re.findall(r"^  (--[\w.-]+)", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize("settings", [MinerConfig, ValidatorConfig, SimulationConfig])
def test_help_shows_the_common_flags_and_help_all_shows_all(settings: type, capsys: pytest.CaptureFixture[str]) -> None:
    flags = flags_of(settings)
    common = [flag.name for flag in flags if flag.common]
    assert 9 <= len(common) <= 13
    assert shown(settings, "--help", capsys) == shown(settings, "-h", capsys) == common
    everything = shown(settings, "--help-all", capsys)
    assert len(everything) == len(flags) + 2
    assert set(everything) == {flag.name for flag in flags} | {"--config", "--help-all"}


def test_help_all_groups_the_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        validator("--help-all")
    text = capsys.readouterr().out
    data = text[text.index("\ndata:\n") : text.index("\nround:\n")]
    assert re.findall(r"^  --(\w+)", data, re.MULTILINE) == ["data"] * 11


def test_help_needs_no_valid_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDGPT2_ZZZ", "1")
    with pytest.raises(SystemExit):
        validator("--rounds", "x", "--config", "/no/such/file", "--help")


def test_a_miner_has_no_settings_of_a_validator() -> None:
    keys = {flag.key for flag in flags_of(MinerConfig)}
    assert {key for key in keys if key.startswith("data.")} == {
        f"data.{name}" for name in ("source", "revision", "column", "cache", "cache_gb")
    }
    assert {key for key in keys if key.startswith("run.")} == {"run.dir", "run.threads"}
    assert "limits.gradient_norm" not in keys
    assert "limits.model_parameters" not in {flag.key for flag in flags_of(ValidatorConfig)}
    with pytest.raises(UsageError, match=r"^unknown flag --data\.windows; it is a setting of fedgpt2 validator$"):
        miner("--data.windows", "3")
    with pytest.raises(
        UsageError, match=r"^unknown flag --limits\.model_parameters; it is a setting of fedgpt2 miner$"
    ):
        validator("--limits.model_parameters", "3")
