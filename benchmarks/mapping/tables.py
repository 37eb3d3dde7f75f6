"""Print the figures of the mapper's benchmark as Markdown tables."""

from collections.abc import Iterable, Sequence
from typing import Any

GIVEN = {"modules": "modules", "shapes": "names and shapes"}


def print_tables(results: dict[str, Any]) -> None:
    """The machine in a line, then a table a subject."""
    where = results["machine"]
    print(
        f"{where['cpu']}, {where['cores']} cores, {where['memory'] / 2**30:.0f} GiB, load {where['load']:.1f} to "
        f"{results['load_at_the_end']:.1f}; Python {where['python']}, torch {results['torch']}; "
        f"median of {results['runs']}, one thread."
    )
    for group, rows in results["pairs"].items():
        _print_pairs(group, rows)
    if any(results["pairs"].values()):
        _print_summary(results)
        _print_calibration(results["calibration"])
    _print_speed(results)
    if "opening" in results:
        _print_opening(results["opening"])
        _print_applying(results["applying"])


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    print(f"\n{title}\n")
    for line in [columns, ["---"] * len(columns), *rows]:
        print(f"| {' | '.join(line)} |")


def _print_pairs(group: str, rows: Sequence[dict[str, Any]]) -> None:
    columns = "pair, tensors, given, exact, wrong, missing, spurious, sure and wrong, ambiguous, first ms, ms, least ms"
    columns += ", naive right, naive s"
    lines = [_pair_line(row, given) for row in rows for given in GIVEN]
    if lines:
        _table(f"Pairs: {group}", columns.split(", "), lines)


def _pair_line(row: dict[str, Any], given: str) -> list[str]:
    one, naive, is_first = row[given], row["naive"], given == "modules"
    keys = ("wrong", "missing", "spurious", "confidently_wrong", "ambiguous")
    return [
        row["pair"] if is_first else "",
        f"{one['source']} × {one['target']}" if is_first else "",
        GIVEN[given],
        f"{one['exact']} of {one['wanted']}",
        *(str(one[key]) for key in keys),
        *(f"{one[key]:.1f}" for key in ("first", "median", "least")),
        f"{naive['right'] / naive['wanted']:.0%}" if is_first else "",
        f"{naive['seconds']:.2f}" if is_first else "",
    ]


def _print_summary(results: dict[str, Any]) -> None:
    columns = "pairs, given, pairs exact, targets right, sure and wrong, spurious, misshapen, ms, least ms, slowest ms"
    lines = [_summary(group, one) for group in results["summary"] for one in results["summary"][group].items()]
    _table("Summary", columns.split(", "), lines)
    first = results["first_call"]
    print(f"\nThe first call in the process ({first['pair']}) took {first['milliseconds']:.0f} ms.")


def _summary(group: str, item: tuple[str, dict[str, Any]]) -> list[str]:
    given, one = item
    times = [f"{one[key]:.1f}" if one[key] < 100 else f"{one[key]:.0f}" for key in ("median", "least", "slowest")]
    line = [group, GIVEN.get(given, given), f"{one['pairs_exact']} of {one['pairs']}", f"{one['right']:.1%}"]
    return [*line, *(str(one.get(key, "–")) for key in ("confidently_wrong", "spurious", "misshapen")), *times]


def _print_calibration(parts: dict[str, list[dict[str, float]]]) -> None:
    bounds = [one["low"] for one in next(iter(parts.values()))]
    labels = [f"{low:g} to {high:g}" for low, high in zip(bounds, [*bounds[1:], 1.0], strict=True)]
    lines = []
    for name, bins in parts.items():
        sure = [one for one in bins if one["low"] >= 0.9]
        cells = [_bin(one["count"], one["right"]) for one in bins]
        total = _bin(sum(one["count"] for one in sure), sum(one["right"] for one in sure))
        lines.append([name, *cells, total])
    _table("Share right by confidence (of so many targets)", ["given", *labels, "from 0.9"], lines)


def _bin(count: float, right: float) -> str:
    return f"{right / count:.1%} ({count:.0f})" if count else "–"


def _print_speed(results: dict[str, Any]) -> None:
    rows = results["scaling"]
    lines, before = [], None
    for depth, one in rows.items():
        ratios = [f"{one[key] / before[key]:.2f}" if before else "–" for key in ("median", "least")]
        lines.append([depth, str(one["tensors"]), *(f"{one[key]:.1f}" for key in ("median", "least")), *ratios])
        before = one
    columns = ("layers", "tensors", "ms", "least ms", "× half the layers", "of the least")
    _table("Llama, transformers → litgpt, by depth", columns, lines)
    modes = results["buffer_modes"]
    full = modes["strict"]
    lines = [
        [
            mode,
            f"{one['source']} × {one['target']}",
            f"{one['pairs']} ({one['pairs'] / full['pairs'] - 1:+.0%})",
            str(one["module_pairs"]),
            str(one["made"]),
            *(f"{one[key]:.1f} ({one[key] / full[key] - 1:+.0%})" for key in ("median", "least")),
        ]
        for mode, one in modes.items()
    ]
    columns = ("mode", "tensors", "pairs of tensors", "pairs of modules scored", "targets made", "ms", "least ms")
    _table("ResNet-50, timm → transformers, by buffer mode (beside strict)", columns, lines)


def _print_opening(rows: dict[str, dict[str, float]]) -> None:
    columns = ("file", "GB", "tensors", "header ms", "inventory ms", "from_checkpoint ms", "with suggest_mapping ms")
    steps = ("header", "inventory", "from_checkpoint", "suggest_mapping")
    lines = [
        [suffix, f"{one['bytes'] / 1e9:.2f}", f"{one['tensors']}", *(f"{one[step]:.1f}" for step in steps)]
        for suffix, one in rows.items()
    ]
    _table("Opening a checkpoint by its header", columns, lines)


def _print_applying(rows: Sequence[dict[str, Any]]) -> None:
    columns = (
        "map, way, GB, of the source, MB/s, copy MB/s, × copy, of the least, "
        "peak anonymous MB, beyond imports MB, bit-exact"
    )
    lines = [
        [
            row["pair"],
            row["way"],
            f"{row['bytes'] / 1e9:.2f}",
            f"{row['mapped']:.0%}",
            *(f"{row['bytes'] / 1e6 / row[key]:.0f}" for key in ("seconds", "copy")),
            f"{row['ratio']:.2f}",
            f"{row['least_seconds'] / row['least_copy']:.2f}",
            *(f"{row[key] / 1e6:.0f}" for key in ("peak_anonymous", "beyond_imports")),
            "yes" if row["is_exact"] else "**no**",
        ]
        for row in rows
    ]
    _table("Applying a map from file to file", columns.split(", "), lines)
