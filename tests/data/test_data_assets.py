"""The text and the tokeniser travel with the package."""

import tomllib
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "fedgpt2"


def test_package_data_covers_every_asset():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["fedgpt2"]
    shipped = [*(PACKAGE / "data" / "assets").iterdir(), PACKAGE / "data" / "NOTICE.md"]
    assert {path.name for path in shipped} == {"sotu.xz", "vocab.bpe.gz", "NOTICE.md"}
    for path in shipped:
        name = path.relative_to(PACKAGE).as_posix()
        assert any(fnmatch(name, pattern) for pattern in patterns), name


def test_assets_stay_small():
    sizes = {path.name: path.stat().st_size for path in (PACKAGE / "data" / "assets").iterdir()}
    assert sum(sizes.values()) < 3_000_000
