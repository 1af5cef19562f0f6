"""`python -m fedgpt2 …` is `fedgpt2 …`."""

import sys

from fedgpt2.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
