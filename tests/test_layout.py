"""What the tree itself must keep."""

import ast
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from fedgpt2.cli.flags import flags_of
from fedgpt2.cli.main import COMMANDS
from fedgpt2.cli.sources import OF_OTHER_COMMANDS

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
REQUIREMENTS = ("requirements.txt", "requirements-test.txt", "benchmarks/requirements.txt")
OURS = {"fedgpt2", "tests"}
LARGE = {"src/fedgpt2/data/assets/sotu.xz"}


def tracked() -> list[str]:
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode:
        pytest.skip("not a checkout")
    return listing.stdout.splitlines()


def test_nothing_lies_beside_the_package() -> None:
    names = {path.split("/")[1] for path in tracked() if path.startswith("src/")}
    assert names == {"miner.py", "validator.py", "fedgpt2"}


def test_no_large_file_is_tracked() -> None:
    large = {path for path in tracked() if (ROOT / path).is_file() and (ROOT / path).stat().st_size > 500_000}
    assert large == LARGE


def test_no_machine_path_or_generated_file_is_tracked() -> None:
    for path in tracked():
        assert not re.search(r"(^|/)(__pycache__|\.venv|runs|node_modules)(/|$)", path)
        if path.endswith((".py", ".md", ".toml", ".yaml", ".txt", "Makefile")) and path != "tests/test_layout.py":
            text = (ROOT / path).read_text() if (ROOT / path).is_file() else ""
            assert not re.search(r"/(root|work/main|work/shared|tmp/\w)", text), path


FORBIDDEN_CALLS = re.compile(
    r"\bpickle\b|\btorch\.load\b|\btorch\.save\b|\bmarshal\b|\bshelve\b|allow_pickle=True|(?<!\.)\b(eval|exec)\("
)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_source_keeps_the_house_rules(path: Path) -> None:
    tree = ast.parse(path.read_text())
    code = ast.unparse(_without_docstrings(tree))
    assert not FORBIDDEN_CALLS.search(code)
    assert len(path.read_text().splitlines()) <= 500
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"bare except, line {node.lineno}"
            assert _kept(node, _caught(node.type, tree), path), f"blanket except, line {node.lineno}"
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 80, f"{node.name} is too long"
    assert not re.search(r"\b(TODO|FIXME|XXX|HACK)\b", path.read_text())


# Who may take in whatever another raises: `Exception` only to raise a typed failure for somebody else's code, a
# `BaseException` only to raise it again, or to hand it on whole to whoever waits for the thread.
BLANKET = {"Exception": {"fedgpt2/registry.py"}, "BaseException": {"data/prefetch.py", "ledger/ledger.py"}}
HANDED_ON = {"fedgpt2/event_loop.py"}


def _kept(handler: ast.ExceptHandler, caught: set[str], path: Path) -> bool:
    """Whether a handler that catches everything stands where one may, and ends by raising."""
    place = "/".join(path.parts[-2:])
    if place in HANDED_ON and "BaseException" in caught:
        return caught == {"BaseException"}
    raises = isinstance(handler.body[-1], ast.Raise)
    return all(place in places and raises for name, places in BLANKET.items() if name in caught)


def _caught(node: ast.expr, tree: ast.Module) -> set[str]:
    """Names in an except clause, and in what the module's own constants of these names hold."""
    held = {name: n.value for n in tree.body if isinstance(n, ast.Assign) for name in _names(n.targets[0])}
    names = _names(node)
    return names.union(*(_names(held[name]) for name in names & held.keys()))


def _names(node: ast.expr) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return tree


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_says_what_it_is_and_what_it_offers(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "no docstring"
    public = [n for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef) and not n.name.startswith("_")]
    if public and path.parent.name != "src":
        offered = [n for n in tree.body if isinstance(n, ast.Assign) and "__all__" in _names(n.targets[0])]
        assert offered, "no __all__"


def test_rooms_import_downwards_only() -> None:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env={"PYTHONPATH": "src"})
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_settings_document_is_current_and_whole() -> None:
    spec = importlib.util.spec_from_file_location("write_settings", ROOT / "scripts" / "write_settings.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert (ROOT / "docs" / "settings.md").read_text() == script.document(), "run `make docs`"
    assert {name.partition(" ")[0] for name in script.PROGRAMS} == set(COMMANDS)
    big = {flag.dest for name in ("miner", "validator", "simulate") for flag in flags_of(script.PROGRAMS[name])}
    small = {flag.dest for program in script.PROGRAMS.values() for flag in flags_of(program)} - big
    assert small <= OF_OTHER_COMMANDS <= small | big  # what an environment may hold for any of them


def test_every_dependency_is_justified() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ranged = {_name(line) for line in project["dependencies"]}
    pinned = {_name(line) for line in (ROOT / "requirements.txt").read_text().splitlines()}
    tests = {_name(line) for line in project["optional-dependencies"]["test"]}
    pinned_tests = {_name(line) for line in (ROOT / "requirements-test.txt").read_text().splitlines() if line[0] != "-"}
    assert ranged == pinned
    assert tests == pinned_tests
    text = (ROOT / "docs" / "dependencies.md").read_text()
    assert all(re.search(rf"\b{name}\b", text) for name in pinned | tests)


def test_what_is_imported_is_asked_for() -> None:
    """By name: what only comes along with another package goes when that one does without it."""
    run, tests, plots = ({_name(line) for line in (ROOT / file).read_text().splitlines()} for file in REQUIREMENTS)
    comparing = ROOT / "src" / "fedgpt2" / "cli" / "bench"  # measures against packages of the tests
    outside = [
        path for folder in ("benchmarks", "studies", "examples", "tests") for path in (ROOT / folder).rglob("*.py")
    ]
    assert not _imported(path for path in SOURCES if comparing not in path.parents) - run
    assert not _imported([*SOURCES, *outside]) - run - tests - plots


def _imported(paths: Iterable[Path]) -> set[str]:
    """Names of the installed distributions whose modules these files import."""
    nodes = [node for path in paths for node in ast.walk(ast.parse(path.read_text()))]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level}
    installed = packages_distributions()
    return {installed[top][0] for top in ({name.partition(".")[0] for name in names} & {*installed}) - OURS}


def test_every_pin_is_exact() -> None:
    lines = [line for file in REQUIREMENTS for line in (ROOT / file).read_text().splitlines()]
    assert all("==" in line or line == "-r requirements.txt" for line in lines)


def _name(requirement: str) -> str:
    return re.split(r"[<>=; ]", requirement, maxsplit=1)[0]


def test_the_licence_keeps_its_first_line() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Copyright © 2023 Yuma Rao" in text
    assert "Copyright © 2026 The Federated GPT2 contributors" in text
