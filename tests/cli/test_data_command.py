"""`fedgpt2 data`: what it prints, and what it leaves in the cache."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedgpt2.cli import data_report as text
from fedgpt2.cli.main import main
from fedgpt2.data import Pool

from ..data.conftest import serve  # noqa: F401, TID252  (a fixture)
from ..data.hub import LoopbackHub  # noqa: TID252
from ..data.refinedweb import repository  # noqa: TID252

SRC = Path(__file__).parents[2] / "src"
SHAPE = ([40, 7, 25], [1, 60], [12] * 8, [30, 30, 5], [9] * 6)


@pytest.fixture
def hub(serve) -> LoopbackHub:  # noqa: F811
    return serve(repository(SHAPE))


def flags(folder: Path, source: str = "refinedweb") -> list[str]:
    return [
        *("--data.source", source, "--data.cache", str(folder / "cache"), "--model.preset", "tiny"),
        *("--data.max_slots", "2", "--data.max_pages", "3", "--data.windows", "4"),
    ]


def test_verify_tells_what_the_text_is(hub: LoopbackHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["data", "verify", *flags(tmp_path)]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    for expected in (
        "hf://datasets/tiiuae/falcon-refinedweb@c735840575b629292b41da8dde11dcd523d4f91c/data/*.parquet",
        "Open Data Commons Attribution License 1.0 (ODC-By)",
        "files      5, ",
        "content string, url string",
        "row groups 2 to 8 a file, 1 to 60 rows each",
        "pages      20 assign, 1 score, 1 report",
        "read       3 pages: ",
        "cache      ",
        "3 pages of this text",
        "all intact",
    ):
        assert expected in said.out


def test_verify_finds_damage_in_the_cache(hub: LoopbackHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["data", "prefetch", *flags(tmp_path)]) == 0
    page = next((tmp_path / "cache" / "text" / "pages").rglob("*.u16"))
    page.write_bytes(b"damaged")
    capsys.readouterr()
    assert main(["data", "verify", "--pages", "0", *flags(tmp_path)]) == 0
    assert "; 1 were damaged and removed" in capsys.readouterr().out
    assert not page.exists()


def test_what_is_prefetched_needs_no_network(
    hub: LoopbackHub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    assert main(["data", "prefetch", "--rounds", "4", "--slots", "2", "--held_out", *flags(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "ODC-By" in said
    assert " tokens for 8 shares; kept in " in said
    requests = len(hub.requests)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    for round in (1, 4):
        assert main(["data", "show", str(round), "1", *flags(tmp_path)]) == 0
    assert main(["data", "prefetch", "--rounds", "4", "--slots", "2", "--held_out", *flags(tmp_path)]) == 0
    assert "fetched    0 tokens" in capsys.readouterr().out
    assert len(hub.requests) == requests


def test_show_names_pages_windows_and_text(hub: LoopbackHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["data", "show", "3", "1", "--text", "2", *flags(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "round 3, slot 1: " in said
    assert "train-0000" in said
    assert "window 1: " in said
    assert "window 2: " not in said


def test_the_embedded_corpus_is_shown_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["data", "verify", *flags(tmp_path, "sample")]) == 0
    assert main(["data", "show", "1", "0", *flags(tmp_path, "sample")]) == 0
    assert main(["data", "prefetch", *flags(tmp_path, "sample")]) == 0
    said = capsys.readouterr().out
    assert "485 assign, 26 score, 26 report" in said
    assert "round 1, slot 0: 4 windows" in said
    assert " shares; this text is not cached" in said


def test_slots_without_text_are_counted(serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]):  # noqa: F811
    serve(repository([[2, 2]] + [[2]] * 33 + [[2, 2]] * 33 + [[2, 2], [2, 2]], pieces=1))
    words = ["--slots", "12", "--rounds", "1", "--data.max_slots", "12", "--data.max_pages", "1", "--data.seq_len", "8"]
    assert main(["data", "prefetch", *flags(tmp_path)[:6], *words]) == 0
    assert " slots have no text" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["data"], 2, ""),
        (["data", "look"], 2, "unknown action look; one of verify, prefetch, show"),
        (["data", "prefetc"], 2, "did you mean prefetch?"),
        (["data", "show"], 2, "give two whole numbers"),
        (["data", "show", "3", "-1"], 2, "give two whole numbers"),
        (["data", "show", "3", "x"], 2, "give two whole numbers"),
        (
            ["data", "show", "3", "9", "--data.source", "sample", "--data.max_slots", "4"],
            2,
            "slot 9: --data.max_slots is 4",
        ),
        (["data", "verify", "--data.source", "web"], 2, "no such source"),
        (["data", "verify", "--data.span", "-1"], 2, "--data.span -1: at least 0"),
    ],
)
def test_bad_usage_is_one_line(words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]):
    assert main(words) == code
    found = capsys.readouterr()
    assert said in found.err
    assert found.err.count("\n") <= 1


@pytest.mark.parametrize("action", ["verify", "prefetch", "show"])
def test_no_network_is_one_line_with_the_way_out(
    action: str, hub: LoopbackHub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    words = ["1", "0"] if action == "show" else []
    assert main(["data", action, *words, *flags(tmp_path)]) == 1
    found = capsys.readouterr().err
    assert found.count("\n") == 1
    assert "--data.source sample" in found
    assert "fedgpt2 data prefetch" in found


@pytest.mark.parametrize("words", [["--help"], ["verify", "--help"], ["prefetch", "--help"], ["show", "--help"]])
def test_help(words: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(["data", *words]) == 0
    assert "usage: fedgpt2 data" in capsys.readouterr().out


def fresh(program: str) -> int:
    """Exit code of a program in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    return subprocess.run([sys.executable, "-c", program], capture_output=True, check=False, env=environment).returncode


def test_nothing_heavy_is_imported_to_parse():
    program = "import sys\nfrom fedgpt2.cli.main import main\nmain(['data', 'verify', '--help'])\n"
    heavy = ("torch", "pyarrow", "huggingface_hub", "numpy")
    assert fresh(f"{program}sys.exit(any(name in sys.modules for name in {heavy}))") == 0


def test_training_on_the_embedded_corpus_imports_neither_pyarrow_nor_the_hub():
    program = (
        "import sys\nfrom fedgpt2.config import Data\nfrom fedgpt2.data import Corpus\n"
        "Corpus.open(Data(source='sample'), 64, 1).assign(1, 0, 4)\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'pyarrow', 'huggingface_hub')))"
    )
    assert fresh(program) == 0


def test_sizes_are_readable():
    assert (text._bytes(466_888_198_663), text._bytes(1_500_000)) == ("466.9 GB", "1.5 MB")
    assert (text._range([3, 3]), text._range([1, 2000])) == ("3", "1 to 2,000")
    assert set(Pool) == {"assign", "score", "report"}
