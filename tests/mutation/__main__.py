"""Run every mutant of `lit_wsl.tensors` against the tests: `python -m tests.mutation [MODULE ...]`."""

import argparse
import json
import os
import sys
import time
from pathlib import Path

import hypothesis
import pytest

from tests.mutation.session import Mutation
from tests.mutation.survivors import excused

ROOT = Path(__file__).parents[2]
SUITES = ["tests/tensors"]
OTHERS = [
    "tests/merging/test_averages.py",
    "tests/merging/test_data_methods.py",
    "tests/merging/test_methods.py",
    "tests/merging/test_sparse_methods.py",
    "tests/merging/test_spectral_methods.py",
]
"""Tests of the rooms above that say what their methods compute."""


def main() -> int:
    """Run the mutants; 1 if one survives that no reason excuses."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="*", help="Modules of lit_wsl.tensors; all by default.")
    parser.add_argument("--budget", type=float, default=3.0, help="CPU seconds of tests for one mutant.")
    parser.add_argument("--only", default="", help="Mutants whose name holds this text.")
    parser.add_argument("--every", type=int, default=1, help="Take only every n-th mutant.")
    parser.add_argument("--merging", action="store_true", help="Let the tests of merge methods try what survives.")
    parser.add_argument("--all", action="store_true", help="Try those too that may survive with a reason.")
    parser.add_argument("--again", type=Path, help="Outcomes of a run; try only what survived it, or is new.")
    parser.add_argument("--out", type=Path, default=ROOT / "artifacts" / "mutants.json")
    options = parser.parse_args()
    started = time.monotonic()
    modules = options.modules or sorted(path.stem for path in (ROOT / "lit_wsl/tensors").glob("[!_]*.py"))
    out = os.fdopen(os.dup(1), "w", buffering=1)  # pytest takes the other one
    known = {} if options.all else dict.fromkeys(excused(), "survived")
    if options.again:
        earlier = json.loads(options.again.read_text())
        known |= {name: outcome for name, outcome in earlier.items() if outcome != "survived"}
    mutation = Mutation(modules, options.budget, lambda line: print(line, file=out), options.only, options.every, known)
    hypothesis.settings.register_profile(
        "mutants",
        derandomize=True,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],  # the smallest example is not needed
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    hypothesis.settings.load_profile("mutants")
    suites = SUITES + OTHERS if options.merging else SUITES
    quiet = ["-p", "no:terminal", "-p", "no:cacheprovider", "-m", "not gpu", "-o", "addopts="]
    code = pytest.main([*quiet, "-o", "tmp_path_retention_policy=none", *suites], plugins=[mutation])
    if code:
        print(f"pytest ended with {code!r}", file=out)
        return int(code)
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(mutation.outcomes, indent=1))
    return _verdict(mutation.outcomes, time.monotonic() - started, out)


def _verdict(outcomes: dict[str, str], seconds: float, out) -> int:
    counted = [outcome for outcome in outcomes.values() if outcome != "stillborn"]
    survivors = [name for name, outcome in outcomes.items() if outcome == "survived"]
    open_ = [name for name in survivors if name not in excused()]
    killed = len(counted) - len(survivors)
    cpu = sum(os.times()[:4])
    print(
        f"{len(counted)} mutants, {killed} killed ({killed / max(1, len(counted)):.1%}), {len(survivors)} survive, "
        f"{len(open_)} of them without a reason; {cpu / 60:.0f} CPU minutes, {seconds / 60:.0f} by the clock",
        file=out,
    )
    for name in open_:
        print(f"  {name}", file=out)
    return int(bool(open_))


if __name__ == "__main__":
    sys.exit(main())
