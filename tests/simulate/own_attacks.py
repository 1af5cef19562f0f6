"""A user's own attacks, good and bad, for the tests of `--attack package.module:function`."""

NUMBER = 3


def flipped(honest, f):
    honest *= -1  # its own copy
    return honest.mean(0).expand(f, -1).double()


def too_few(honest, f):
    return honest[:0]


def raises(honest, f):
    raise ValueError("no\nand more")


def nothing(honest, f):
    return None
