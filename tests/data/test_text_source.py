"""`text:GLOB` and the other ways to name a source."""

import os
from pathlib import Path

import pytest

from fedgpt2.config import Data
from fedgpt2.data import Corpus, PageSource, Pool, open_source
from fedgpt2.errors import CorpusError, UsageError

FIRST = "The quick brown fox number {} jumps over the lazy dog. "
REST = "It goes on its way home, over the hills and the fields, and is not seen again. " * 25


def write_corpus(folder: Path, files: int = 4, paragraphs: int = 100) -> None:
    """Files of paragraphs of about 2 KB, each a document."""
    for number in range(files):
        text = "\n\n".join((FIRST.format(f"{number}-{i}") + REST).strip() for i in range(paragraphs))
        path = folder / f"{'abcdef'[number]}" / f"{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def open_text(pattern: object) -> PageSource:
    return open_source(Data(source=f"text:{pattern}"))


def numbers(source: PageSource, pool: Pool) -> list[list[str]]:
    """The paragraph number of each document of each page."""
    return [
        [document.split("number ")[1].split()[0] for document in source.documents(pool, page)]
        for page in range(source.pools[pool])
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_corpus(tmp_path)
    return tmp_path


def test_every_20th_page_is_held_out(folder: Path):
    source = open_text(folder / "**" / "*.txt")
    assert source.pools == {Pool.ASSIGN: 45, Pool.SCORE: 3, Pool.REPORT: 2}  # 50 pages of 8
    every = [f"{number}-{i}" for number in range(4) for i in range(100)]
    pages = [every[i : i + 8] for i in range(0, 400, 8)]
    assert numbers(source, Pool.SCORE) == pages[9::20]
    assert numbers(source, Pool.REPORT) == pages[19::20]
    assert numbers(source, Pool.ASSIGN) == [p for i, p in enumerate(pages) if i % 20 not in (9, 19)]


def test_a_file_that_a_glob_finds_twice_is_there_once(folder: Path):
    assert open_text(folder / "**" / "**" / "*.txt").files() == open_text(folder / "**" / "*.txt").files()


def test_file_names_do_not_depend_on_the_machine(folder: Path, monkeypatch: pytest.MonkeyPatch):
    expected = [f"{'abcd'[n]}/{n}.txt" for n in range(4)]
    files = open_text(folder / "*" / "*.txt").files()
    assert [file.path for file in files] == expected
    assert files[0].size == (folder / "a" / "0.txt").stat().st_size
    monkeypatch.chdir(folder)
    assert open_text("**/*.txt").files() == files
    monkeypatch.setenv("HOME", str(folder))
    assert open_text("~/*/*.txt").files() == files


def test_one_file_without_a_wildcard(tmp_path: Path):
    write_corpus(tmp_path, files=1, paragraphs=170)
    source = open_text(tmp_path / "a" / "0.txt")
    assert [file.path for file in source.files()] == ["0.txt"]
    assert source.pools == {Pool.ASSIGN: 19, Pool.SCORE: 1, Pool.REPORT: 1}


def test_a_byte_order_mark_is_skipped(tmp_path: Path):
    write_corpus(tmp_path, files=1, paragraphs=170)
    path = tmp_path / "a" / "0.txt"
    plain = open_text(path).documents(Pool.ASSIGN, 3)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    marked = open_text(path)
    assert marked.documents(Pool.ASSIGN, 3) == plain
    assert marked.documents(Pool.ASSIGN, 0)[0].startswith("The quick")


def test_a_corpus_of_ones_own_trains(folder: Path):
    config = Data(source=f"text:{folder}/*/*.txt", max_slots=4, max_pages=2)
    corpus = Corpus.open(config, seq_len=16, seed=1)
    assert corpus.windows(corpus.assign(round=3, slot=2, n=5)).shape == (5, 17)


def test_too_few_pages_for_the_slots(folder: Path):
    with pytest.raises(CorpusError, match=r"45 pages .* --data.max_slots 16 x --data.max_pages 8"):
        Corpus.open(Data(source=f"text:{folder}/*/*.txt"), seq_len=16, seed=1)


def test_too_small(tmp_path: Path):
    write_corpus(tmp_path, files=1, paragraphs=159)
    with pytest.raises(CorpusError, match=r"too small: 159 documents .* 160 are needed"):
        open_text(tmp_path / "*" / "*.txt")


@pytest.mark.parametrize("pattern", ["*.md", "nowhere/*.txt", "a", "/"])
def test_an_empty_glob_is_named(folder: Path, pattern: str):
    with pytest.raises(CorpusError, match="names no file"):
        open_text(folder / pattern)


def test_a_folder_is_not_its_files(folder: Path):
    with pytest.raises(CorpusError, match=rf"but a folder; text:{folder}/a/\* names the files in it"):
        open_text(folder / "a")


def test_a_file_that_is_not_utf8_is_named(folder: Path):
    (folder / "b" / "bad.txt").write_bytes(b"abc\xe9 def")
    with pytest.raises(CorpusError, match=r"bad\.txt: not UTF-8 text \(byte 3\)"):
        open_text(folder / "**" / "*.txt")


def test_a_file_that_cannot_be_read_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, os.strerror(13), str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(CorpusError, match=r"0\.txt: cannot be read \(Permission denied\)"):
        open_text(folder / "**" / "*.txt")


@pytest.mark.skipif(os.name != "posix", reason="file names are bytes on POSIX only")
def test_a_file_name_that_is_not_utf8(folder: Path):
    (folder / "a" / os.fsdecode(b"\xff.txt")).write_bytes(b"text")
    with pytest.raises(CorpusError, match="its name is not UTF-8") as caught:
        open_text(folder / "*" / "*.txt")
    str(caught.value).encode()


def test_a_file_that_changes_or_goes_is_named(folder: Path):
    source = open_text(folder / "*" / "*.txt")
    path = folder / "a" / "0.txt"
    path.write_bytes(path.read_bytes() + b" more")
    with pytest.raises(CorpusError, match=r"0\.txt: has changed"):
        source.documents(Pool.ASSIGN, 0)
    path.unlink()
    with pytest.raises(CorpusError, match=r"0\.txt: cannot be read any more"):
        source.documents(Pool.ASSIGN, 0)


@pytest.mark.parametrize("page", [-1, 3])
def test_no_such_page(folder: Path, page: int):
    with pytest.raises(CorpusError, match="no page"):
        open_text(folder / "*" / "*.txt").documents(Pool.SCORE, page)


@pytest.mark.parametrize("source", ["", "text", "text:", "parquet", "parquet:", "sample:x", "web", "Sample"])
def test_an_unknown_source_is_a_usage_error(source: str):
    with pytest.raises(UsageError, match="no such source; one of refinedweb, sample"):
        open_source(Data(source=source))
