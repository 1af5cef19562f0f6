"""`python src/validator.py …` is `fedgpt2 validator …`; it needs no install and works from any folder."""

import sys

from fedgpt2.cli.main import main
from fedgpt2.cli.process import exit_process

if __name__ == "__main__":
    exit_process(main(["validator", *sys.argv[1:]]))
