"""A mapping in a file: JSON for programs, or one page for a browser."""

import json
from collections.abc import Iterator
from math import isfinite
from pathlib import Path
from typing import Any

from lit_wsl.errors import CheckpointError
from lit_wsl.mapper.page import page
from lit_wsl.mapper.result import MappingResult, Match
from lit_wsl.mapper.rows import operation_words, shapes_of
from lit_wsl.state.publish import published_file

PAGE_SUFFIXES = (".html", ".htm")
SUFFIXES = (".json", *PAGE_SUFFIXES)


def write_report(result: MappingResult, path: Path) -> None:
    """Write a mapping as JSON, or as a page where the path ends in ``.html``; an earlier file is replaced.

    Raises:
        CheckpointError: If the file cannot be written.
    """
    if path.is_dir():
        raise CheckpointError(f"Report {path} is a directory; name a file that ends in {' or '.join(SUFFIXES)}.")
    is_page = path.suffix.lower() in PAGE_SUFFIXES
    text = page(result) if is_page else json.dumps(report_of(result), indent=1, allow_nan=False) + "\n"
    with published_file(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def report_of(result: MappingResult) -> dict[str, Any]:
    """The mapping as plain values."""
    unmatched = result.get_unmatched()
    return {
        "source_model": result.source.where,
        "target_model": result.target.where,
        "source_params_count": len(result.source.weights),
        "target_params_count": len(result.target.weights),
        "matched_count": len(set(result.recipes.sources())),
        "coverage": result.coverage,
        "target_coverage": result.target_coverage,
        "strategy": result.strategy,
        "threshold": result.threshold,
        "mappings": list(_mappings(result)),
        "unmatched_source": [{"name": name, "reason": reason} for name, reason in unmatched.items()],
        "unmatched_target": unmatched["target"],
        "recipes": result.recipes.to_json(),
    }


def _mappings(result: MappingResult) -> Iterator[dict[str, Any]]:
    """A row for every pair of a recipe's sources and targets."""
    given, made = shapes_of(result.source), shapes_of(result.target)
    for match in result.matches:
        common = _evidence(match)
        for source in match.entry.sources:
            for target in match.entry.targets:
                shapes = {"shape": list(made[target]), "source_shape": list(given[source])}
                yield {"source": source, "target": target, **shapes, **common}


def _evidence(match: Match) -> dict[str, Any]:
    scores = match.scores
    parts = {part: _finite(getattr(scores, part)) for part in ("shape", "name", "hierarchy", "order", "total")}
    return {
        "score": _finite(match.score),
        "match_type": match.match_type,
        "operation": operation_words(match.entry.operations),
        "scores": parts,
        "is_ambiguous": match.is_ambiguous,
        "alternatives": list(match.alternatives),
        "note": match.note,
    }


def _finite(value: float) -> float | None:
    """The value; None for what JSON has no word for."""
    return float(value) if isfinite(value) else None
