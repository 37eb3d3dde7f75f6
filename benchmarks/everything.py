"""Run every benchmark that the history knows, one after another, and keep its figures: two hours, 15 GB of disk.

python -m benchmarks.everything                                  # all
python -m benchmarks.everything --only startup coefficient_step  # some
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.headlines import READERS
from benchmarks.history import entries, keep, update_page
from benchmarks.provenance import ROOT


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and keep; returns 1 where a benchmark failed or its result was wrong, whose figures are not kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(READERS), default=list(READERS), help="default all")
    failed = []
    for name in parser.parse_args(arguments).only:
        print(f"\n## {name}\n", flush=True)
        with TemporaryDirectory() as folder:
            file = Path(folder) / "figures.json"
            command = [sys.executable, "-m", f"benchmarks.{name}", "--json", file]
            if subprocess.run(command, cwd=ROOT, check=False).returncode:
                failed.append(name)
                continue
            keep(entries(json.loads(file.read_text(encoding="utf-8"))))
            update_page()
    if failed:
        print(f"Failed, and not kept: {', '.join(failed)}.", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
