"""How many cases there are of each kind, and how they are drawn: the same ones in every run, or others on demand.

What hypothesis calls `derandomize` is not enough. It also draws constants out of the source of every module of this
repository that happens to be imported, so that an edit anywhere, or another order of the tests, changes the cases.
Here nothing counts but the kind, the strategy and a number.
"""

import hashlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.internal.conjecture import providers
from hypothesis.strategies import SearchStrategy

CASES = {
    "safetensors bytes": 200,
    "safetensors headers": 260,
    "indexes": 160,
    "adapter settings": 300,
    "adapter tensors": 100,
    "torch files": 200,
    "torch pickles": 160,
    "trained checkpoints": 100,
    "merge settings": 260,
    "YAML": 120,
    "tables of tasks": 60,
    "model settings": 120,
    "weight maps": 120,
    "runs": 160,
    "rows": 80,
    "statistics": 120,
    "partial folders": 120,
    "markers": 80,
    "comparisons": 120,
    "training settings": 40,
}
"""Cases of each kind in one run of the suite."""
WANTED = "LIT_WSL_FAULT_CASES"
"""Variable of the environment: so many cases in all."""
SEED = "LIT_WSL_FAULT_SEED"
"""Variable of the environment: a number that draws other cases; 0 without it."""
DIGESTS = "LIT_WSL_FAULT_DIGESTS"
"""Variable of the environment: a file that takes a line for each kind on what is drawn; few are, and none is tried."""
FEW = 4
"""A part of the cases that is as good as all of them to tell whether two runs draw the same."""


def cases_of(kind: str) -> int:
    """How many cases of a kind to try."""
    wanted = int(os.environ.get(WANTED, "0"))
    return max(CASES[kind], wanted * CASES[kind] // sum(CASES.values()))


def try_cases(
    kind: str,
    strategy: SearchStrategy[Any],
    write: Callable[[Any], object],
    entries: Sequence[Callable[[], object]],
) -> None:
    """Write a drawn case and enter the program by a drawn entry, as often as the kind asks for.

    Args:
        kind: Key of ``CASES``.
        strategy: Draws a case; it should know no path and no time.
        write: Puts it where the entries look for it.
        entries: Ways into the program, for instance one for every command; one that is rare stands once, the others
            several times.
    """
    done = 0
    digests, digest = os.environ.get(DIGESTS), hashlib.sha256()
    wanted = cases_of(kind) // FEW if digests else cases_of(kind)

    @seed(f"{kind} {os.environ.get(SEED, '0')}")
    @settings(
        max_examples=wanted,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
        print_blob=False,
    )
    @given(strategy, st.sampled_from(range(len(entries))))
    def each(case: Any, entry: int) -> None:
        nonlocal done
        done += 1
        if digests:
            digest.update(repr((case, entry)).encode("utf-8", "surrogatepass"))
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            write(case)
            entries[entry]()

    with _nothing_of_the_source():
        each()
    assert done >= wanted, f"only {done} cases of {kind} could be drawn"
    if digests:
        with Path(digests).open("a") as file:
            file.write(f"{kind}: {done} cases, {digest.hexdigest()}\n")


@contextmanager
def _nothing_of_the_source() -> Iterator[None]:
    """Let hypothesis find no constants in the modules that are imported."""
    if not hasattr(providers, "_get_local_constants"):  # it never looks
        yield
        return
    none = providers.Constants()
    known = mock.patch.object(providers, "CONSTANTS_CACHE", {})  # holds what other tests found there
    with known, mock.patch.object(providers, "_get_local_constants", return_value=none):
        yield
