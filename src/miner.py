"""`python src/miner.py …` is `fedgpt2 miner …`; it needs no install and works from any folder."""

import sys

from fedgpt2.cli.main import main
from fedgpt2.cli.process import exit_process

if __name__ == "__main__":
    exit_process(main(["miner", *sys.argv[1:]]))
