"""`python -m fedgpt2 …` is `fedgpt2 …`."""

from fedgpt2.cli.main import console

if __name__ == "__main__":
    console()
