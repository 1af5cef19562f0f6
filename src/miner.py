"""`python src/miner.py …` is `fedgpt2 miner …`; it needs no install and works from any folder."""

import sys

from fedgpt2.cli.exit import leave
from fedgpt2.cli.main import main

if __name__ == "__main__":
    leave(main(["miner", *sys.argv[1:]]))
