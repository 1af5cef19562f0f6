"""A worker process that does next to nothing."""

from fedgpt2.cli.bench.worker import peak_mb, serve


def fails():
    raise RuntimeError("the last word")


def prints():
    print("not an answer")  # noqa: T201
    assert peak_mb() > 1


if __name__ == "__main__":
    serve({"double": lambda value: {"value": 2 * value}, "fails": fails, "prints": prints})
