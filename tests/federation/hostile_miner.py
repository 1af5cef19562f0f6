"""A miner that lies, as its own command: `--attack NAME …`, one an order."""

from fedgpt2.cli import hostile


def main(argv):
    return hostile.main(argv[1:])
