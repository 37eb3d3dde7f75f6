"""Print the figures of a benchmark as one Markdown table."""

from collections.abc import Sequence
from typing import Any

COLUMNS = (
    "merge",
    "program",
    "wall s",
    "CPU s",
    "peak RSS GB",
    "peak anonymous GB",
    "beyond imports GB",
    "× floor",
    "faster",
    "less CPU",
    "rms error",
    "rounding alone",
)
PROGRAMS = {"ours": "lit-wsl", "peer": "mergekit"}


def print_table(results: dict[str, Any]) -> None:
    """Print the machine in a line, then one line a merge and program."""
    machine = results["machine"]
    print(
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory'] / 2**30:.0f} GiB, load {machine['load']:.1f} "
        f"to {machine['load_at_the_end']:.1f}; Python {machine['python']}, torch {machine['torch']}; "
        f"{results['size']} models of {results['model_bytes'] / 1e9:.2f} GB; median of {results['runs']}, "
        f"threads: {results['threads']}.\n"
    )
    imports = [_imports(who, one) for who, one in results["imports"].items()]
    rows = [line for row in results["rows"] for line in _lines(row, results["imports"])]
    for line in [COLUMNS, ["---"] * len(COLUMNS), *imports, *rows]:
        print(f"| {' | '.join(line)} |")


def _imports(who: str, one: dict[str, Any]) -> Sequence[str]:
    return ["imports alone", PROGRAMS[who], *_measured(one), *["–"] * 6]


def _lines(row: dict[str, Any], imports: dict[str, Any]) -> list[Sequence[str]]:
    lines = []
    for who, program in PROGRAMS.items():
        if who not in row:
            continue
        one, agreement = row[who], row["agreement"][who]
        faster, less = (f"{row['peer'][key] / one[key]:.1f}" if "peer" in row else "–" for key in ("wall", "cpu"))
        lines.append(
            [
                row["merge"],
                program,
                *_measured(one),
                f"{(one['peak_anonymous'] - imports[who]['peak_anonymous']) / 1e9:.2f}",
                f"{one['wall'] / row['floor']['wall']:.1f}",
                faster,
                less,
                f"{agreement['rms']:.2e}",
                f"{agreement['expected_rms']:.2e}",
            ]
        )
    return lines


def _measured(one: dict[str, Any]) -> list[str]:
    sizes = [f"{one[key] / 1e9:.2f}" for key in ("peak_rss", "peak_anonymous")]
    return [f"{one['wall']:.2f}", f"{one['cpu']:.2f}", *sizes]
