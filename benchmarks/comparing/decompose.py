"""Factors of every linear layer in a process of its own, by our range finder or by a full decomposition of each.

python -m benchmarks.comparing.decompose ours|svd BASE FINETUNED DIRECTORY THREADS
"""

import json
import math
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.comparing.variants import RANK, linear_layers
from lit_wsl.comparing.patterns import OVERSAMPLING
from lit_wsl.state.reader import StateReader, open_state
from lit_wsl.tensors.difference import Stored
from lit_wsl.tensors.lora import LoraFactors
from lit_wsl.tensors.spectrum import DeltaMatrix, leading_spectrum, residual_norm
from lit_wsl.tensors.workers import parallel_parameters


def main() -> None:
    """Decompose and print seconds, and by layer the share of the update that the factors leave out."""
    way, base, tuned, _, threads = sys.argv[1:]
    print(json.dumps(decompose(open_state(base), open_state(tuned), WAYS[way], int(threads))))


def decompose(
    base: StateReader, tuned: StateReader, way: Callable[[DeltaMatrix], LoraFactors], threads: int
) -> dict[str, Any]:
    """Factors of rank ``RANK`` of every linear layer; what they leave out is found when the clock has stopped."""
    names = linear_layers(base.keys())
    began = time.perf_counter()
    with parallel_parameters(threads) as pool:
        factors = list(pool.map(lambda name: way(_matrix(base, tuned, name)), names))
    seconds = time.perf_counter() - began
    with parallel_parameters(threads) as pool:
        errors = list(pool.map(lambda n, f: _error(_matrix(base, tuned, n), f), names, factors))
    return {"seconds": seconds, "errors": dict(zip(names, errors, strict=True))}


def range_finder(matrix: DeltaMatrix) -> LoraFactors:
    """Ours."""
    return leading_spectrum(matrix, RANK + OVERSAMPLING).factors(RANK)


def full(matrix: DeltaMatrix) -> LoraFactors:
    """All singular values, of which the largest are kept."""
    U, S, Vh = torch.linalg.svd(matrix.whole(), full_matrices=False)
    root = S[:RANK].sqrt()
    return LoraFactors(root[:, None] * Vh[:RANK], U[:, :RANK] * root, 1.0, matrix.shape)


WAYS = {"ours": range_finder, "svd": full}


def _matrix(base: StateReader, tuned: StateReader, name: str) -> DeltaMatrix:
    rows, columns = base.info(name).shape
    return DeltaMatrix(Stored(base.read(name)), Stored(tuned.read(name)), (rows, columns))


def _error(matrix: DeltaMatrix, factors: LoraFactors) -> float:
    size = math.sqrt(sum(float(block.square().sum(dtype=torch.float64)) for _, block in matrix.blocks()))
    return residual_norm(matrix, factors) / size if size else 0.0


def error_of_adapter(base: StateReader, tuned: StateReader, adapter: StateReader) -> dict[str, float]:
    """What the factors in a PEFT adapter of scale 1 leave out, by layer."""
    errors = {}
    for name in linear_layers(base.keys()):
        A, B = (adapter.read(f"base_model.model.{name.removesuffix('weight')}lora_{x}.weight").float() for x in "AB")
        matrix = _matrix(base, tuned, name)
        errors[name] = _error(matrix, LoraFactors(A, B, 1.0, matrix.shape))
    return errors


if __name__ == "__main__":
    main()
