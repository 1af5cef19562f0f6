"""Names that settings choose from, and a user's own objects by their import path."""

import pytest

from fedgpt2.errors import Reason, Refused, UsageError
from fedgpt2.registry import Registry, load, plugin_errors


def numbers(adapt=None):
    registry = Registry("number", adapt)
    registry.register("one", 1)
    registry.register("two", 2)
    return registry


def doubled(name, loaded):
    if not isinstance(loaded, int):
        raise TypeError(f"{name} is no number")
    return 2 * loaded


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module of the current folder."""
    (tmp_path / "own_numbers.py").write_text("FOUR = 4\nWORD = 'four'\n")
    monkeypatch.chdir(tmp_path)
    return "own_numbers"


def test_a_registered_item_is_found_by_its_name():
    registry = numbers()
    assert (registry.get("two", "--n"), registry["one"], registry.names) == (
        2,
        1,
        ("one", "two"),
    )


@pytest.mark.parametrize("name", ["three", "own_numbers:FOUR", ""])
def test_an_unknown_name_is_a_line_that_lists_the_others(name):
    with pytest.raises(UsageError) as caught:
        numbers().get(name, "--n")
    assert str(caught.value) == f"--n {name}: no such number; one of one, two"


@pytest.mark.parametrize("name", ["one", "a:b"])
def test_a_name_is_registered_once_and_is_no_path(name):
    with pytest.raises(ValueError, match="no free name of a number"):
        numbers().register(name, 3)


def test_a_path_is_imported_and_adapted_once(module):
    registry = numbers(lambda name, loaded: [doubled(name, loaded)])
    item = registry.get("own_numbers:FOUR", "--n")
    assert item == [8]
    assert registry.get("own_numbers:FOUR", "--n") is item
    assert registry.names == ("one", "two")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("own_numbers:WORD", "TypeError: own_numbers:WORD is no number"),
        ("own_numbers:FIVE", "own_numbers has no FIVE"),
        ("no_such_module_here:x", "ModuleNotFoundError: No module named 'no_such_module_here'"),
        (":x", "write it as package.module:object"),
        ("x:", "write it as package.module:object"),
    ],
)
def test_a_path_that_does_not_load_is_one_line(module, path, said):
    with pytest.raises(UsageError, match=said) as caught:
        numbers(doubled).get(path, "--n")
    assert str(caught.value).startswith("--n ")
    assert "\n" not in str(caught.value)


def test_a_module_that_exits_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "exits_at_once.py").write_text("raise SystemExit(3)\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="--n exits_at_once:x: SystemExit: 3"):
        load("exits_at_once:x", "--n")


def test_errors_of_the_types_that_pass_are_raised_as_they_are():
    with pytest.raises(Refused), plugin_errors(UsageError, passing=(Refused,)):
        raise Refused(Reason.CANCELLED)
    with pytest.raises(UsageError, match="StopIteration: over"), plugin_errors(UsageError):
        raise StopIteration("over\nand more")
