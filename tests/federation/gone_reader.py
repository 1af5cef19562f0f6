"""The program with a reader of its output that has left, as `tee` has when Ctrl-C ends it first."""

import os
import sys

from fedgpt2.cli.main import main as real_main
from fedgpt2.cli.process import exit_process


def main(argv):
    reader, writer = os.pipe()
    os.close(reader)
    sys.stdout.close()
    os.dup2(writer, 1)
    sys.stdout = os.fdopen(1, "w")
    exit_process(real_main(argv))
