"""How right and how fast the mapper is on pairs whose truth is known."""

import gc
import random
import re
import statistics
import string
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import nn

from benchmarks.mapping.naive import naive
from lit_wsl.mapper import WeightMapper
from lit_wsl.mapper.inventory import take_inventory
from lit_wsl.mapper.result import SURE, MappingResult
from lit_wsl.state.remap import WeightMap
from tests.mapper.pairs.compare import differences
from tests.mapper.pairs.pair import Pair, Shapes, shapes_of

T = TypeVar("T")

SEEDS = range(5)
"""Vocabularies of random words that the targets are renamed to."""
_KEPT = frozenset({"weight", "bias", "running_mean", "running_var", "num_batches_tracked"})


@dataclass(frozen=True)
class Loaded:
    """A pair at real size on the meta device."""

    pair: Pair
    source: nn.Module
    target: nn.Module

    def shapes(self) -> tuple[Shapes, Shapes]:
        """Names and shapes of both sides."""
        return shapes_of(self.source), shapes_of(self.target)


def load(pair: Pair) -> Loaded:
    """Build both models without memory."""
    with torch.device("meta"):
        return Loaded(pair, pair.source(False), pair.target(False))


def measure_pair(loaded: Loaded, runs: int) -> dict[str, Any]:
    """Truth and time of one pair: with modules, by names and shapes, renamed, and what the naive way gives."""
    (source, target), aliases = loaded.shapes(), take_inventory(loaded.source).aliases
    truth = loaded.pair.truth(source, target)
    row: dict[str, Any] = {"pair": loaded.pair.name}
    for given, make in {
        "modules": lambda: WeightMapper(loaded.source, loaded.target),
        "shapes": lambda: WeightMapper(source_params=source, target_params=target),
    }.items():
        gc.collect()
        result, first, times = timed(lambda make=make: make().suggest_mapping(), runs)
        row[given] = judged(result, truth, aliases) | {
            "first": first,
            "median": statistics.median(times),
            "least": min(times),
        }
    source, target = _trainable(loaded.source), _trainable(loaded.target)
    row["renamed"] = [sure for seed in SEEDS for sure in _renamed(source, target, truth, aliases, seed)]
    began = time.perf_counter()
    pairs = naive(source, target)
    row["naive"] = {"seconds": time.perf_counter() - began} | _judged_naive(pairs, truth, aliases, target)
    return row


def timed(program: Callable[[], T], runs: int) -> tuple[T, float, list[float]]:
    """What a program returns, the milliseconds of its first run, and those of ``runs`` more."""
    times = []
    for _ in range(1 + runs):
        began = time.perf_counter()
        result = program()
        times.append((time.perf_counter() - began) * 1e3)
    return result, times[0], times[1:]


def judged(result: MappingResult, truth: WeightMap, aliases: Mapping[str, str]) -> dict[str, Any]:
    """Right, wrong, missing and spurious targets, and the confidence of each that is made."""
    names = set(result.target.names())
    expected = WeightMap(tuple(entry for entry in truth if names.issuperset(entry.targets)))
    found = differences(expected, result.recipes, aliases)
    scores = {name: match.score for match in result.matches for name in match.entry.targets}
    return {
        "source": len(result.source.weights),
        "target": len(result.target.weights),
        "wanted": len(expected.targets()),
        "exact": len(expected.targets()) - len(found.wrong) - len(found.missing),
        "wrong": len(found.wrong),
        "missing": len(found.missing),
        "spurious": len(found.spurious),
        "misshapen": _misshapen(result),
        "confidently_wrong": sum(scores[name] >= SURE for name in found.false()),
        "ambiguous": sum(score < SURE for score in scores.values()),
        "scores": [(score, name not in found.false()) for name, score in scores.items()],
    }


def _misshapen(result: MappingResult) -> int:
    """Targets that get a shape which is not theirs."""
    state = {weight.name: torch.empty(weight.shape, device="meta") for weight in result.source.weights}
    shapes = {weight.name: weight.shape for weight in result.target.weights}
    return sum(tuple(tensor.shape) != shapes[name] for name, tensor in result.apply(state).items())


def _renamed(
    source: Shapes, target: Shapes, truth: WeightMap, aliases: Mapping[str, str], seed: int
) -> list[tuple[float, bool]]:
    """Confidence and truth of every target that is made when the target's names say nothing."""
    rename = random_words(target, seed)
    mapper = WeightMapper(source_params=source, target_params={rename[name]: shape for name, shape in target.items()})
    made = [entry for entry in truth if rename.keys() >= set(entry.targets)]
    expected = WeightMap(tuple(replace(e, targets=tuple(rename[name] for name in e.targets)) for e in made))
    scores: list[tuple[float, bool]] = judged(mapper.suggest_mapping(), expected, aliases)["scores"]
    return scores


def random_words(names: Iterable[str], seed: int) -> dict[str, str]:
    """New names: every word another one at random, the same everywhere; numbers and last parts of layers stay."""
    rng = random.Random(seed)  # noqa: S311
    words: dict[str, str] = {}

    def word(match: re.Match[str]) -> str:
        return words.setdefault(match[0], "".join(rng.choices(string.ascii_lowercase, k=rng.randint(4, 8))))

    def rename(name: str) -> str:
        *inner, last = name.split(".")
        return ".".join([re.sub("[A-Za-z]+", word, part) for part in inner] + [_last(last, word)])

    return {name: rename(name) for name in names}


def _last(part: str, word: Callable[[re.Match[str]], str]) -> str:
    return part if part in _KEPT else re.sub("[A-Za-z]+", word, part)


def _trainable(module: nn.Module) -> Shapes:
    return {weight.name: weight.shape for weight in take_inventory(module).without_buffers().weights}


def _judged_naive(
    pairs: Mapping[str, str], truth: WeightMap, aliases: Mapping[str, str], target: Shapes
) -> dict[str, int]:
    """Targets of the naive map that are copies of the right tensor, of all that the truth makes."""
    right, wanted = 0, 0
    for entry in truth:
        for name in target.keys() & set(entry.targets):
            wanted += 1
            known = pairs.get(name)
            is_copy = not entry.operations and known is not None
            right += is_copy and aliases.get(known, known) == aliases.get(entry.sources[0], entry.sources[0])
    return {"right": right, "wanted": wanted, "made": len(pairs)}


def calibration(scores: Sequence[tuple[float, bool]], bounds: Sequence[float]) -> list[dict[str, float]]:
    """For every bin of confidence how many targets lie in it, and the share of them that is right."""
    bins = []
    for low, high in zip(bounds, [*bounds[1:], 2.0], strict=True):
        inside = [right for score, right in scores if low <= score < high]
        mean = statistics.mean(score for score, _ in scores if low <= score < high) if inside else 0.0
        bins.append({"low": low, "count": len(inside), "right": sum(inside), "mean": mean})
    return bins
