"""Compare two models in one pass over their tensors, and keep what was found as it is found."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from lit_wsl.comparing.architecture import Architecture, architecture_of
from lit_wsl.comparing.examine import Subject, examine
from lit_wsl.comparing.models import ComparedModel
from lit_wsl.comparing.records import Finding
from lit_wsl.comparing.settings import CompareSettings
from lit_wsl.errors import CheckpointError
from lit_wsl.tensors.workers import forked, free_cores

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lit_wsl.comparing.adapter_output import ExtractionReport

Progress = Callable[[int, int, str], None]
"""Called with bytes done, bytes in all, and the tensor at hand."""
SMALL = 1 << 26
"""Bytes of both models below which threads do: they start sooner than processes."""
AHEAD = 4
"""Tensors that are queued for each worker."""
FACTORS = ".factors"
"""Folder of extracted factors inside an output directory, until the adapter is written."""


@dataclass
class Comparison:
    """What is known of two models; findings are in the order of the base."""

    base: str
    """Where the model before lies."""
    finetuned: str
    """Where the model after lies."""
    settings: CompareSettings
    """Bars and choices of the comparison."""
    architecture: Architecture
    """Names, shapes and dtypes of both models, and what only one of them has."""
    findings: list[Finding] = field(default_factory=list)
    """What was found of every tensor that both have."""
    seconds: float = 0.0
    """What it took."""
    extraction: "ExtractionReport | None" = None
    """What was written of the factors."""
    is_complete: bool = False
    """Whether every tensor was examined; False after an interruption."""

    def failed(self) -> dict[str, str]:
        """Tensors that could not be compared, with the reason."""
        return self.architecture.failed | {one.name: one.failed for one in self.findings if one.failed}

    def extracted(self) -> list[str]:
        """What was extracted and what a user must know of it, in sentences; empty where nothing was asked for."""
        return [] if self.extraction is None else [self.extraction.sentence(), *self.extraction.notes]

    def figures(self) -> "dict[str, Figure]":
        """Where the change lies and what it looks like, as figures: ``heat_map``, ``spectra`` and ``histogram``.

        A figure that would show nothing is left out. A notebook shows them; ``savefig`` writes them.
        """
        if not any(one.change is not None and one.change.diff_norm for one in self.findings):
            return {}
        from lit_wsl.comparing.plots import figures_of  # matplotlib takes a while to import

        return figures_of(self.findings, self.settings.threshold)


def new_comparison(base: ComparedModel, tuned: ComparedModel, settings: CompareSettings) -> Comparison:
    """A comparison of which only names, shapes and dtypes are known.

    Raises:
        CheckpointError: If the models have no name in common.
    """
    return Comparison(base.where, tuned.where, settings, architecture_of(base, tuned))


def examine_all(
    comparison: Comparison,
    base: ComparedModel,
    tuned: ComparedModel,
    directory: Path,
    *,
    finished: Mapping[str, Finding] = MappingProxyType({}),
    found: Callable[[Finding], None] = lambda finding: None,
    threads: int = 0,
    progress: Progress | None = None,
) -> None:
    """Examine every tensor that both models have; an interruption leaves the comparison with what is done.

    Args:
        comparison: Receives the findings.
        base: The model before.
        tuned: The model after.
        directory: Existing directory that receives the factors.
        finished: Findings of an earlier run, which are not repeated.
        found: Told each finding in the order of the base, also those of an earlier run.
        threads: Workers; 0 takes one per core.
        progress: Told after each tensor.
    """
    began = time.perf_counter()
    names = comparison.architecture.comparable()
    left, right = base.infos(), tuned.infos()
    sizes = {name: left[name].nbytes + right[name].nbytes for name in names}
    done, total = 0, sum(sizes.values())

    def task(name: str, at: int) -> Finding:
        if name in finished:
            return finished[name]
        try:
            subject = Subject(name, base.entries(name), tuned.entries(name), directory / FACTORS / factor_file(at))
            return examine(subject, comparison.settings)
        except CheckpointError as error:
            return Finding(name, failed=str(error))

    try:
        for finding in _in_order(task, names, threads or free_cores(), is_small=total < SMALL):
            comparison.findings.append(finding)
            found(finding)
            done += sizes[finding.name]
            if progress is not None:
                progress(done, total, finding.name)
        comparison.is_complete = True
    finally:
        comparison.seconds = time.perf_counter() - began


def factor_file(at: int) -> str:
    """File that keeps the factors of the tensor at that place in the base."""
    return f"{at:06d}.safetensors"


def _in_order(
    task: Callable[[str, int], Finding], names: list[str], workers: int, *, is_small: bool
) -> Iterator[Finding]:
    """Results in the order of the names, a few of them worked on ahead.

    Raises:
        CheckpointError: If a worker process was killed.
    """
    queue: deque[Future[Finding]] = deque()
    with forked(task, workers, in_threads=is_small) as pool:
        try:
            for at, name in enumerate(names):
                queue.append(pool.submit(name, at))
                if len(queue) >= AHEAD * workers:
                    yield queue.popleft().result()
            while queue:
                yield queue.popleft().result()
        except BrokenProcessPool as error:
            raise CheckpointError(
                "A worker process was killed, perhaps for want of memory; go on with `--resume --threads 1`."
            ) from error
