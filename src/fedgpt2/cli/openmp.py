"""Cores that are shared with other programs."""

import os

__all__ = ["SPINS", "share_cores"]

SPINS = "GOMP_SPINCOUNT"
_TURNS = "3000"  # alone on its cores a gradient of nano takes no longer; with 1000 a tenth (benchmarks/crowded.py)


def share_cores() -> None:
    """Have the threads of tensor arithmetic sleep soon when they wait for one another; call before torch is imported.

    By default GNU's OpenMP turns 300,000 times round before a thread sleeps: milliseconds, at each of the thousands of
    meetings of a gradient whose other thread another program keeps waiting, and on a core that this program could use.
    What the environment says already stands.
    """
    if not {SPINS, "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ[SPINS] = _TURNS
