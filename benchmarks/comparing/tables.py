"""Print the figures of the comparison benchmark as Markdown tables."""

from collections.abc import Iterable, Sequence
from typing import Any


def print_tables(results: dict[str, Any]) -> None:
    """Print the machine in a line, then a table for each part that was measured."""
    where = results["machine"]
    print(
        f"{where['cpu']}, {where['cores']} cores, {where['memory'] / 2**30:.0f} GiB, load {where['load']:.1f} to "
        f"{results['load_at_the_end']:.1f}; Python {where['python']}, torch {results['torch']}; {results['size']} "
        f"models of {results['model_bytes'] / 1e9:.2f} GB; median of {results['runs']}, threads: {results['threads']}."
    )
    for part, show in PARTS.items():
        if part in results:
            show(results[part], results["imports"]["peak_anonymous"])


def _figures(rows: dict[str, dict[str, Any]], imports: int) -> None:
    floor, naive = rows["floor"], rows["naive"]
    lines = [["floor: reading", f"{floor['reading']:.2f}", *["–"] * 6]]
    lines.append(["floor: arithmetic", f"{floor['arithmetic']:.2f}", *["–"] * 6])
    for name, title in {"figures": "figures", "comparison": "figures and spectra", "naive": "naive"}.items():
        one = rows[name]
        times = [f"{one[key]:.2f}" for key in ("seconds", "wall", "cpu")]
        share = f"{100 * floor['seconds'] / one['seconds']:.0f}%"
        error = f"{one['worst_error']:.0e}" if "worst_error" in one else "–"
        faster = f"{naive['seconds'] / one['seconds']:.1f}"
        lines.append([title, *times, _megabytes(one, imports), share, faster, error])
    head = ("work", "s", "whole process s", "CPU s", "beyond imports MB", "of the floor", "× naive", "worst error")
    _table("Every tensor changed", head, lines)


def _memory(rows: dict[str, dict[str, int]], imports: int) -> None:
    head = ("beyond imports MB", *next(iter(rows.values())))
    lines = [
        [work, *(_megabytes({"peak_anonymous": peak}, imports) for peak in row.values())] for work, row in rows.items()
    ]
    _table("Peak anonymous memory", head, lines)


def _extraction(rows: dict[str, dict[str, dict[str, Any]]], imports: int) -> None:
    lines = []
    for kind, programs in rows.items():
        reference, peer = programs["full SVD"]["seconds"], programs.get("mergekit", {}).get("wall")
        for name, one in programs.items():
            if "missing" in one:
                lines.append([kind, name, one["missing"], *["–"] * 6])
                continue
            inside = one.get("seconds")
            lines.append(
                [
                    kind,
                    name,
                    f"{inside:.2f}" if inside else "–",
                    f"{one['wall']:.2f}",
                    _megabytes(one, imports),
                    f"{reference / inside:.1f}" if inside else "–",
                    f"{peer / one['wall']:.1f}" if peer else "–",
                    f"{one['error']:.5f}",
                    f"{one['worst']:.4f}",
                ]
            )
    head = ("fine-tune", "program", "s", "whole process s", "beyond imports MB", "× full SVD", "× mergekit", "left out")
    _table("Factors of rank 16 of every linear layer", (*head, "worst layer, × full SVD"), lines)


def _kinds(rows: dict[str, dict[str, dict[str, Any]]], imports: int) -> None:
    lines = [
        [kind, *(f"{one[work]['seconds']:.2f}" for work in ("figures", "found")), str(one["found"]["extracted"])]
        for kind, one in rows.items()
    ]
    _table("Kinds of fine-tunes", ("fine-tune", "figures s", "whole comparison s", "factors of matrices"), lines)


PARTS = {"figures": _figures, "memory": _memory, "extraction": _extraction, "kinds": _kinds}


def _megabytes(one: dict[str, Any], imports: int) -> str:
    return f"{max(0, one['peak_anonymous'] - imports) / 1e6:.0f}"


def _table(title: str, head: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
    print(f"\n### {title}\n")
    for line in [head, ["---"] * len(head), *lines]:
        print(f"| {' | '.join(line)} |")
