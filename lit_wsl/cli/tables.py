"""Tables that commands print."""

import inspect
import sys

from rich.table import Table

from lit_wsl.cli.console import table_console
from lit_wsl.merging.method import all_methods
from lit_wsl.merging.preview import preview
from lit_wsl.merging.report import MergeReport
from lit_wsl.merging.spec import MergeSpec


def merge_summary(report: MergeReport) -> int:
    """Print what a merge did."""
    lines = [f"{report.output}: {report.output_format} by {report.method}, {len(report.merged)} parameters merged"]
    if report.copied:
        lines.append(f"{len(report.copied)} copied from the base")
    if report.skipped:
        lines.append(f"{len(report.skipped)} left out (see merge_metadata.json)")
    if report.retained_energy:
        lines.append(f"lowest retained energy {min(report.retained_energy.values()):.4f}")
    sys.stdout.write(", ".join(lines) + "\n")
    return 0


def merge_preview(spec: MergeSpec) -> int:
    """Print what a merge would do."""
    table = Table(show_header=False, title="A merge that was not done (--dry_run)")
    for name, text in preview(spec).rows():
        table.add_row(name, text)
    table_console(markup=False).print(table)
    return 0


def method_table() -> int:
    """Print every merge method with its parameters and defaults."""
    table = Table("method", "also", "parameters", "what it does", title="Merge methods")
    by_class: dict[type, list[str]] = {}
    for name, cls in all_methods().items():
        by_class.setdefault(cls, []).append(name)
    for cls, names in sorted(by_class.items(), key=lambda item: item[1][0]):
        params = ", ".join(f"{name}={value}" for name, value in cls().params().items())
        first = (inspect.getdoc(cls) or "").splitlines()[0]
        table.add_row(names[0], ", ".join(names[1:]), params or "–", first)
    table_console(markup=False).print(table)
    return 0
