"""Federations whose processes end with the test, and two honest miners that serve the whole session."""

import pytest

from .federation import Federation, Gate, write_corpus
from .program import start_server


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent.name == "federation":
            item.add_marker("federation")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A text file."""
    return write_corpus(tmp_path_factory.mktemp("text") / "corpus.txt")


@pytest.fixture(scope="session")
def shared(tmp_path_factory, corpus):
    """The federation of the session: its wallets serve every test, so that miners always meet the same validator."""
    start_server()
    federation = Federation(tmp_path_factory.mktemp("shared"), corpus)
    yield federation
    federation.close()


@pytest.fixture(scope="session")
def miners(shared):
    """Two honest miners; nobody stops them before the end of the session."""
    return [shared.miner(name) for name in ("H1", "H2")]


@pytest.fixture
def federation(tmp_path, corpus, shared):
    """A federation of this test's own, with the session's wallets."""
    own = Federation(tmp_path, corpus, shared.wallets)
    yield own
    own.close()


@pytest.fixture
def gate(tmp_path):
    """A closed gate."""
    return Gate(tmp_path / "gate")
