"""`python src/validator.py …` is `fedgpt2 validator …`; it needs no install and works from any folder."""

import sys

from fedgpt2.cli.exit import leave
from fedgpt2.cli.main import main

if __name__ == "__main__":
    leave(main(["validator", *sys.argv[1:]]))
