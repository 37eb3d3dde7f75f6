"""Merge one parameter at a time, block by block, in memory that does not grow with the model.

A block is small enough to stay in cache, so each source is read once and each result written once. Blocks
are cut the same way whatever the machine, so the result does not depend on threads or shards.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lit_wsl.errors import MergeError
from lit_wsl.merging.method import LinearMethod, MergeContext, Scan
from lit_wsl.merging.plan import MergePlan
from lit_wsl.merging.sources import LowRankVector, TaskVector, TunedVector
from lit_wsl.tensors.lora import LoraFactors

BLOCK_ENTRIES = 1 << 17


class ParameterMerger:
    """Merges one parameter of a plan.

    Args:
        plan: The merge.
        name: Parameter to merge.
        statistics: Result of the method's scan of the whole model.
    """

    def __init__(self, plan: MergePlan, name: str, statistics: Any = None) -> None:
        self.name = name
        self._plan, self._method = plan, plan.method
        self._base = plan.base_tensor(name)
        against = self._base if plan.subtract_base else None
        self._vectors: list[TaskVector] = [source.task_vector(name, against) for source in plan.sources]
        self._entries = plan.merged[name].numel
        scan = self._method.scan_tensor(len(self._vectors))
        self._statistics = _run(scan, lambda: [self]) if scan else statistics

    def low_rank_terms(self) -> list[LoraFactors] | None:
        """Factors whose sum is the merged update, or None when the method or a source needs it dense."""
        if not isinstance(self._method, LinearMethod):
            return None
        factors = self.factors()
        return self._method.merge_factors(factors) if len(factors) == len(self._vectors) else None

    def factors(self) -> list[LoraFactors]:
        """The low-rank sources' factors, unweighted."""
        return [vector.factors for vector in self._vectors if isinstance(vector, LowRankVector)]

    def deltas(self) -> Iterator[tuple[int, Tensor]]:
        """The merged update: (first entry, float32 block) pairs in order."""
        return self._checked(self._linear(add_base=False) if self._is_linear() else self._general(add_base=False))

    def values(self) -> Iterator[tuple[int, Tensor]]:
        """Base plus the merged update: (first entry, float32 block) pairs in order."""
        return self._checked(self._linear(add_base=True) if self._is_linear() else self._general(add_base=True))

    def stacks(self) -> Iterator[tuple[int, int, Tensor]]:
        """The task vectors: (start, stop, block of shape ``(T, stop - start)``) in order."""
        for start, stop in self._ranges():
            yield start, stop, torch.stack([vector.block(start, stop) for vector in self._vectors])

    def _is_linear(self) -> bool:
        return isinstance(self._method, LinearMethod)

    def _ranges(self) -> Iterator[tuple[int, int]]:
        grain = max(vector.granularity for vector in self._vectors)
        step = max(1, BLOCK_ENTRIES // grain) * grain
        for start in range(0, self._entries, step):
            yield start, min(start + step, self._entries)

    def _base_block(self, start: int, stop: int) -> Tensor | None:
        return None if self._base is None else self._base.reshape(-1)[start:stop]

    def _general(self, *, add_base: bool) -> Iterator[tuple[int, Tensor]]:
        for start, stop, stack in self.stacks():
            stored = self._base_block(start, stop)
            base = None if stored is None else stored.float()
            delta = self._method.merge(stack, base, MergeContext(self.name, start, self._statistics))
            yield start, delta if not add_base or base is None else base + delta

    def _linear(self, *, add_base: bool) -> Iterator[tuple[int, Tensor]]:
        """Weighted sum without the detour over differences: ``(1 - sum c) base + sum c tuned + factors``."""
        assert isinstance(self._method, LinearMethod)
        coefficients = self._method.coefficients(len(self._vectors)).tolist()
        terms = self.low_rank_terms()
        if terms is None:
            pairs = zip(coefficients, self._vectors, strict=True)
            terms = [v.factors.scaled(c) for c, v in pairs if isinstance(v, LowRankVector)]
        dense = [(c, v) for c, v in zip(coefficients, self._vectors, strict=True) if not isinstance(v, LowRankVector)]
        against_base = sum(c for c, v in dense if isinstance(v, TunedVector)) if self._plan.subtract_base else 0.0
        base_share = float(add_base and self._plan.subtract_base) - against_base
        left, right = _stacked(terms)
        for start, stop in self._ranges():
            yield start, self._weighted_sum(start, stop, base_share, dense, left, right)

    def _weighted_sum(
        self,
        start: int,
        stop: int,
        base_share: float,
        dense: list[tuple[float, TaskVector]],
        left: Tensor | None,
        right: Tensor | None,
    ) -> Tensor:
        total = torch.zeros(stop - start)
        stored = self._base_block(start, stop)
        if stored is not None and abs(base_share) > 1e-12:
            total.copy_(stored)
            if base_share != 1.0:
                total.mul_(base_share)
        for coefficient, vector in dense:
            entries = vector.tuned[start:stop] if isinstance(vector, TunedVector) else vector.block(start, stop)
            total.add_(entries, alpha=coefficient)
        if left is not None and right is not None:
            width = right.shape[1]
            total.view(-1, width).addmm_(left[start // width : stop // width], right)
        return total

    def _checked(self, blocks: Iterator[tuple[int, Tensor]]) -> Iterator[tuple[int, Tensor]]:
        """Pass blocks on, and stop at the first that is not finite, naming who brought it in."""
        for start, block in blocks:
            # One sum is far cheaper than a test of every entry, and a NaN or inf cannot hide in it.
            if not torch.isfinite(block.sum()) and not torch.isfinite(block).all():
                raise MergeError(self._blame(start, start + block.numel()))
            yield start, block

    def _blame(self, start: int, stop: int) -> str:
        stored = self._base_block(start, stop)
        if stored is not None and not torch.isfinite(stored).all():
            return f"The base has NaN or infinite entries in {self.name!r}; it is damaged."
        for source, vector in zip(self._plan.sources, self._vectors, strict=True):
            if not torch.isfinite(vector.block(start, stop)).all():
                return f"{source.where} has NaN or infinite entries in {self.name!r}; leave this source out."
        return f"Merging {self.name!r} overflows float32; use smaller coefficients."


def _stacked(terms: list[LoraFactors]) -> tuple[Tensor | None, Tensor | None]:
    """One product of two matrices that equals the sum of all low-rank terms, in the stored orientation."""
    if not terms:
        return None, None
    pairs = [term.stored_factors() for term in terms]
    return torch.cat([left for left, _ in pairs], dim=1), torch.cat([right for _, right in pairs])


@contextmanager
def parallel_parameters(threads: int = 0) -> Iterator[ThreadPoolExecutor]:
    """A pool whose workers merge one parameter each, while torch keeps to one core per operation.

    Blocks are too small to be worth sharing out: threads that wait for each other after every block cost
    more than they bring as soon as a core is busy with something else.

    Args:
        threads: Workers; 0 takes one per core that this process may use.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    workers = threads or len(os.sched_getaffinity(0))
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)


def scan_model(plan: MergePlan) -> Any:
    """Run the method's passes over the whole model; None for methods that need none."""
    scan = plan.method.scan_model(len(plan.sources))
    return _run(scan, lambda: (ParameterMerger(plan, name) for name in plan.merged)) if scan else None


def _run(scan: Scan, parameters: Any) -> Any:
    """Feed every block of every parameter to a scan until it has seen enough."""
    while True:
        for parameter in parameters():
            for _, _, stack in parameter.stacks():
                scan.update(stack)
        if scan.end_pass():
            return scan.result()
