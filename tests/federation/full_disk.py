"""The program on a disk that has no room for the checkpoint of round 2."""

import errno

from fedgpt2.cli.main import main as real_main
from fedgpt2.storage import checkpoints as checkpoints

_write_parts = checkpoints.write_parts


def _full(path, parts):
    if "round-000002" in path.parent.name and path.name == "optimizer.safetensors":
        path.write_bytes(b"a part of it")
        raise OSError(errno.ENOSPC, "No space left on device")
    _write_parts(path, parts)


def main(argv):
    checkpoints.write_parts = _full
    return real_main(argv)
