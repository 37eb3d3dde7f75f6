"""Every figure that was kept, and one table of the last of each, beside what it was before.

python -m benchmarks.history                          # print the table
python -m benchmarks.history --keep RESULTS.json ...  # keep what scripts wrote with --json, and bring README up to date
"""

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.headlines import headlines

HERE = Path(__file__).parent
HISTORY, README = HERE / "history.jsonl", HERE / "README.md"
MARKS = ("<!-- table of the history -->", "<!-- end of the table -->")
WORSE = 1.1
"""A ratio to the peer or to the floor that is so many times worse than before is marked; loads alone give less."""
COLUMNS = (
    "work",
    "s",
    "peer",
    "its s",
    "faster",
    "less CPU",
    "× floor",
    "memory GB",
    "its GB",
    "than before",
    "day, load",
    "script",
)

Entry = dict[str, Any]


def entries(results: Mapping[str, Any]) -> list[Entry]:
    """Lines for the history from the results that a script wrote."""
    machine = results["machine"]
    at = {key: results[key] for key in ("date", "commit", "benchmark", "command", "runs") if key in results}
    at |= {"cores": machine["cores"], "load": round(machine["load"], 1)}
    return [at | {k: v for k, v in asdict(one).items() if v is not None} for one in headlines(results)]


def read(path: Path = HISTORY) -> list[Entry]:
    """All that was kept, oldest first."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def keep(found: Iterable[Entry], path: Path = HISTORY) -> None:
    """Append; what stands there stays."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(f"{json.dumps(one, ensure_ascii=False)}\n" for one in found)


def table(history: Sequence[Entry]) -> str:
    """The last entry of every work as Markdown, in the order in which works were first kept."""
    by_work: dict[str, list[Entry]] = {}
    for one in history:
        by_work.setdefault(one["subject"], []).append(one)
    lines = [_cells(kept[-1], kept[-2] if len(kept) > 1 else None) for kept in by_work.values()]
    return "\n".join(f"| {' | '.join(line)} |" for line in (COLUMNS, ["---"] * len(COLUMNS), *lines))


def measure_of(entry: Entry) -> float | None:
    """The figure that a busy machine changes least, larger is better: less CPU, faster, or the floor's share."""
    if "peer_cpu" in entry and "cpu" in entry:
        return entry["peer_cpu"] / entry["cpu"]
    if "peer_wall" in entry:
        return entry["peer_wall"] / entry["wall"]
    return entry["floor"] / entry["wall"] if "floor" in entry else None


def change(entry: Entry, before: Entry | None) -> str:
    """By what factor the measure is better than before; marked where it is worse."""
    now, then = measure_of(entry), measure_of(before) if before else None
    if now is None or then is None:
        return "–"
    return f"{now / then:.2f}{' ▼' if then / now > WORSE else ''}"


def _cells(one: Entry, before: Entry | None) -> list[str]:
    return [
        one["subject"],
        _seconds(one["wall"]),
        one.get("peer", "–"),
        _seconds(one["peer_wall"]) if "peer_wall" in one else "–",
        _ratio(one, "peer_wall", "wall"),
        _ratio(one, "peer_cpu", "cpu"),
        _ratio(one, "wall", "floor"),
        *(f"{one[key] / 1e9:.2f}" if key in one else "–" for key in ("memory", "peer_memory")),
        change(one, before),
        f"{one['date']}, {one['load']:.1f}",
        f"`{one['benchmark']}`",
    ]


def _seconds(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _ratio(one: Entry, above: str, below: str) -> str:
    return f"{one[above] / one[below]:.3g}" if above in one and below in one else "–"


def with_table(readme: str, history: Sequence[Entry]) -> str:
    """The page with the table between its marks."""
    before, _, rest = readme.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    return f"{before}{MARKS[0]}\n\n{table(history)}\n\n{MARKS[1]}{after}"


def update_page() -> None:
    """Bring the table in README up to date."""
    README.write_text(with_table(README.read_text(encoding="utf-8"), read()), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Keep what is given, print the table; returns 1 where something is worse than before."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.history", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keep", type=Path, nargs="+", default=[], metavar="FILE", help="results of scripts")
    options = parser.parse_args(arguments)
    missing = next((path for path in options.keep if not path.is_file()), None)
    if missing:
        parser.error(f"{missing} is no file; give what a script wrote with --json.")
    for path in options.keep:
        keep(entries(json.loads(path.read_text(encoding="utf-8"))))
    if options.keep:
        update_page()
    printed = table(read())
    print(printed)
    return int(" ▼ |" in printed)


if __name__ == "__main__":
    sys.exit(main())
