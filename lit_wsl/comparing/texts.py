"""A comparison as plain text: tensor by tensor while it runs, and a short report for people."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_wsl.comparing.records import Finding, TensorChange
from lit_wsl.comparing.run import Comparison
from lit_wsl.comparing.summary import Total, short_kinds, summarise
from lit_wsl.comparing.verdict import verdict_of
from lit_wsl.comparing.wording import amount, figure, percent, span
from lit_wsl.errors import CheckpointError

MOST_MODIFIED = 20
_DOUBLE, _RULE, _LINE = "=" * 80, "-" * 80, "-" * 60


class DifferenceText:
    """The file ``difference.txt``: a header, a block for each tensor as soon as it is known, and a summary.

    Args:
        path: File to write; an earlier one is replaced.
        comparison: What is compared; its findings are added one by one.

    Raises:
        CheckpointError: If the file cannot be written, here and in the methods.
    """

    def __init__(self, path: Path, comparison: Comparison) -> None:
        self._path = path
        try:
            self._file = path.open("w", encoding="utf-8")
        except OSError as error:
            raise _unwritable(path, error) from error
        self._write(_header(comparison))

    def add(self, finding: Finding) -> None:
        """Write the block of a tensor."""
        self._write(_block(finding))

    def close(self, comparison: Comparison) -> None:
        """Write performance and most modified tensors, and close the file."""
        self._write(_performance(comparison))
        self._write(_most_modified(comparison.findings))
        self._file.close()

    def _write(self, lines: Iterator[str]) -> None:
        try:
            self._file.write("".join(f"{line}\n" for line in lines))
            self._file.flush()
        except OSError as error:
            raise _unwritable(self._path, error) from error


def _unwritable(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"{path} could not be written ({error.strerror or error}); check the disk and the directory, or choose another."
    )


def _header(comparison: Comparison) -> Iterator[str]:
    yield from (_DOUBLE, "LAYER-BY-LAYER WEIGHT DIFFERENCE ANALYSIS", _DOUBLE)
    yield f"Base Model: {comparison.base}"
    yield f"Finetuned Model: {comparison.finetuned}"
    yield f"Threshold: {comparison.settings.threshold:g}"
    yield f"Total Layers: {len(comparison.architecture.comparable())}"
    yield from (_DOUBLE, "")


def _block(finding: Finding) -> Iterator[str]:
    yield f"Layer: {finding.name}"
    if finding.change is None:
        yield f"  Failed: {finding.failed}"
    else:
        change = finding.change
        yield f"  Shape: {change.shape}"
        yield f"  Total time: {change.total_time:.3f}s"
        yield f"  Tensor computation: {change.tensor_time:.3f}s"
        if change.numpy_time is not None:
            yield f"  NumPy computation: {change.numpy_time:.3f}s"
            yield f"  Speedup (Tensor vs NumPy): {_speedup(change.numpy_time, change.tensor_time)}"
        yield f"  Mean abs diff: {_decimals(change.mean_abs_diff)}"
        yield f"  Max abs diff: {_decimals(change.max_abs_diff)}"
        yield f"  Relative diff: {_decimals(change.relative_diff)}"
        yield f"  Changed ratio: {change.changed_ratio:.2%}"
    yield from (_LINE, "")


def _speedup(numpy_time: float, tensor_time: float) -> str:
    return f"{numpy_time / max(tensor_time, 1e-9):.2f}x"


def _decimals(value: float) -> str:
    """Eight decimals, or an exponent where they would show next to nothing."""
    return f"{value:.8f}" if value == 0.0 or value >= 1e-6 else f"{value:.2e}"


def _performance(comparison: Comparison) -> Iterator[str]:
    changes = [finding.change for finding in comparison.findings if finding.change is not None]
    count = max(len(changes), 1)
    yield from (_DOUBLE, "PERFORMANCE SUMMARY", _DOUBLE)
    yield f"Total time: {comparison.seconds:.2f}s"
    yield f"Average time per layer: {sum(change.total_time for change in changes) / count:.3f}s"
    yield f"Slowest layer: {max((change.total_time for change in changes), default=0.0):.3f}s"
    yield f"Layers processed: {len(changes)}"
    if failed := sum(bool(finding.failed) for finding in comparison.findings):
        yield f"Layers failed: {failed}"
    yield f"Modified layers: {sum(change.modified for change in changes)}"
    yield f"Average tensor computation: {sum(change.tensor_time for change in changes) / count:.3f}s"
    timed = [(change.numpy_time, change.tensor_time) for change in changes if change.numpy_time is not None]
    if timed:
        numpy_time, tensor_time = (sum(times) for times in zip(*timed, strict=True))
        yield f"Average NumPy computation: {numpy_time / len(timed):.3f}s"
        yield f"Tensor speedup over NumPy: {_speedup(numpy_time, tensor_time)}"
    yield ""


def most_modified(findings: Sequence[Finding], count: int = MOST_MODIFIED) -> list[tuple[str, TensorChange]]:
    """Names and changes of the tensors with the largest relative difference, without those that are equal."""
    changed = [(one.name, one.change) for one in findings if one.change is not None and one.change.diff_norm > 0.0]
    return sorted(changed, key=lambda pair: -pair[1].relative_diff)[:count]


def _most_modified(findings: Sequence[Finding]) -> Iterator[str]:
    yield from (f"TOP {MOST_MODIFIED} MOST MODIFIED LAYERS:", _RULE)
    top = most_modified(findings)
    for place, (name, change) in enumerate(top, 1):
        yield f"{place:2d}. {name}"
        yield f"     Relative diff: {_decimals(change.relative_diff)}"
        yield f"     Changed ratio: {change.changed_ratio:.2%}"
        yield f"     Processing time: {change.total_time:.3f}s"
        yield f"     Tensor time: {change.tensor_time:.3f}s"
        if change.numpy_time is not None:
            yield f"     NumPy time: {change.numpy_time:.3f}s"
        yield f"     Shape: {change.shape}"
    if not top:
        yield "(no layer changed)"


def report_text(comparison: Comparison, configs: Mapping[str, Any]) -> str:
    """The file ``comparison_report.txt``: the verdict, then short tables."""
    verdict, sums = verdict_of(comparison), summarise(comparison.findings)
    lines = [f"{verdict.headline}.", "", f"Base:       {comparison.base}", f"Fine-tuned: {comparison.finetuned}", ""]
    lines += [f"- {one}" for one in [*verdict.findings, *comparison.extracted()]]
    if sums.whole.changed:
        short = short_kinds(sums.kinds)
        changed = sorted(
            ((short[name], one) for name, one in sums.kinds.items() if one.changed), key=lambda x: -x[1].diff_norm
        )
        lines += _table("By kind of module, the largest difference first", changed)
        if sums.has_towers():
            lines += _table("By tower", list(sums.towers.items()))
        layers = sorted(sums.layers.items(), key=lambda pair: -pair[1].relative_diff)[:MOST_MODIFIED]
        lines += _table("Most changed layers", [pair for pair in layers if pair[1].changed])
        lines += _tensors(most_modified(comparison.findings))
    lines += _configs(configs)
    return "\n".join(lines).rstrip() + "\n"


def _table(title: str, rows: Sequence[tuple[str, Total]]) -> list[str]:
    """Totals under a title; nothing without rows."""
    if not rows:
        return []
    cells = [
        (
            name,
            f"{one.changed}/{one.tensors}",
            amount(one.entries),
            figure(one.relative_diff),
            percent(one.changed_ratio),
            span(one.ranks) if one.ranks else "-",
        )
        for name, one in rows
    ]
    return _laid_out(title, ("", "changed", "entries", "relative", "entries changed", "rank"), cells)


def _tensors(rows: Sequence[tuple[str, TensorChange]]) -> list[str]:
    cells = [
        (name, "x".join(map(str, one.shape)), figure(one.relative_diff), percent(one.changed_ratio))
        for name, one in rows
    ]
    return _laid_out("Most changed tensors", ("", "shape", "relative", "entries changed"), cells)


def _laid_out(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in (head, *rows)
    ]
    return ["", f"{title}:", *(f"  {line}".rstrip() for line in lines)]


def _configs(configs: Mapping[str, Any]) -> list[str]:
    rows = [(f"{kind}.{key}", one) for kind, found in configs.items() for key, one in found.items()]
    if not rows:
        return []
    told = [f"  {key}: {_short(one['base'])} -> {_short(one['finetuned'])}" for key, one in rows]
    return ["", "Configuration, base -> fine-tuned:", *told]


def _short(value: object, most: int = 60) -> str:
    text = str(value).replace("\n", "\\n")
    return text if len(text) <= most else f"{text[: most - 3]}..."
