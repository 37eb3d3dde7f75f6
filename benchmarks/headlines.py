"""What the history keeps of each benchmark: a line for every work that is set against a peer or a floor."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

GIGABYTE = 1e9


@dataclass(frozen=True)
class Headline:
    """One work. Times are seconds; memory is anonymous, in bytes, the imports of the program included."""

    subject: str
    """What was done, to what."""
    wall: float
    peer: str | None = None
    """Who does the same, or the like."""
    peer_wall: float | None = None
    floor: float | None = None
    """Seconds that nothing could undercut."""
    cpu: float | None = None
    peer_cpu: float | None = None
    memory: float | None = None
    peer_memory: float | None = None

    def __post_init__(self) -> None:
        if (self.peer is None) != (self.peer_wall is None):
            raise ValueError(f"A peer has a name and a time, or neither: {self}.")


def headlines(results: Mapping[str, Any]) -> list[Headline]:
    """Lines of the results that a script wrote with ``--json``."""
    return list(READERS[results["benchmark"]](results))


def _against(subject: str, row: Mapping[str, Any], peer: str) -> Headline:
    """Of programs that ran in turn, with the floor."""
    ours, theirs = row["ours"], row.get("peer")
    return Headline(
        subject,
        ours["wall"],
        peer if theirs else None,
        theirs["wall"] if theirs else None,
        row["floor"]["wall"],
        ours["cpu"],
        theirs["cpu"] if theirs else None,
        ours["peak_anonymous"],
        theirs["peak_anonymous"] if theirs else None,
    )


def _merge_models(results: Mapping[str, Any]) -> Iterator[Headline]:
    for row in results["rows"]:
        yield _against(f"merge {results['size']} models: {row['merge']}", row, "mergekit")


def _merge_adapters(results: Mapping[str, Any]) -> Iterator[Headline]:
    for row in results["rows"]:
        subject = f"merge adapters of a {results['size']} model: {row['merge']}"
        yield _against(subject, row, f"PEFT {row['peer_merge']}")


def _merge_scale(results: Mapping[str, Any]) -> Iterator[Headline]:
    for row in results["rows"]:
        subject = f"merge two models of {row['model']}, {results['weights']} files: {row['merge']}"
        yield _against(subject, row, "")


def _checkpoint(results: Mapping[str, Any]) -> Iterator[Headline]:
    rows = results["rows"]
    pairs = {
        "save": ("universal, side-car exact", "torch.save of the same bytes"),
        "load into the same configuration": ("load: same configuration", "load: torch.load"),
        "load into rank 32": ("load: into rank 32", "load: torch.load"),
    }
    for work, (name, peer) in pairs.items():
        ours, theirs = rows[name], rows[peer]
        memory = {"memory": ours["peak_anonymous"], "peer_memory": theirs["peak_anonymous"]}
        subject = f"universal checkpoint of {results['size']} with LoRA: {work}"
        yield Headline(subject, ours["wall"], peer.removeprefix("load: "), theirs["wall"], **memory)


def _compare(results: Mapping[str, Any]) -> Iterator[Headline]:
    size = results["size"]
    if "figures" in results:
        rows = results["figures"]
        ours, naive = rows["figures"], rows["naive"]
        yield Headline(
            f"compare {size} models: figures of every tensor",
            ours["seconds"],
            "naive",
            naive["seconds"],
            rows["floor"]["seconds"],
            ours["cpu"],
            naive["cpu"],
            ours["peak_anonymous"],
            naive["peak_anonymous"],
        )
    for kind, rows in results.get("extraction", {}).items():
        ours, theirs = rows["lit-wsl, whole comparison"], rows.get("mergekit", {})
        peer = ("mergekit", theirs["wall"]) if "wall" in theirs else (None, None)
        memory = {"memory": ours["peak_anonymous"], "peer_memory": theirs.get("peak_anonymous")}
        cpu = {"cpu": ours.get("cpu"), "peer_cpu": theirs.get("cpu")}
        yield Headline(f"extract rank 16 from {size}: {kind}", ours["wall"], *peer, **memory, **cpu)


def _mapper(results: Mapping[str, Any]) -> Iterator[Headline]:
    for group, parts in results["summary"].items():
        ours, naive = (parts[name]["median"] / 1e3 for name in ("modules", "naive"))
        yield Headline(f"map pairs that were {group}: median pair", ours, "names by difflib", naive)
    for row in results.get("applying", ()):
        subject = f"apply a map to {row['bytes'] / GIGABYTE:.1f} GB: {row['pair']}, {row['way']}"
        yield Headline(subject, row["seconds"], floor=row["copy"], memory=row["peak_anonymous"])


def _coefficient_step(results: Mapping[str, Any]) -> Iterator[Headline]:
    rows = {row["way"]: row["ms"] / 1e3 for row in results["rows"]}
    peer = "functional_clone_legacy"
    subject = "an update of merge coefficients, 8 adapters and tasks"
    yield Headline(subject, rows["merge_once"], f"`{peer}`", rows[peer], rows["plain training"])


def _throughput(results: Mapping[str, Any]) -> Iterator[Headline]:
    for name, row in results["rows"].items():
        subject = f"a training step under `ThroughputLogger`, {name} model"
        yield Headline(subject, row["step"] + row["inside"], floor=row["step"])


def _startup(results: Mapping[str, Any]) -> Iterator[Headline]:
    for command, row in results["rows"].items():
        yield _against(f"`lit-wsl {command} --help`", row, "mergekit")


READERS: dict[str, Callable[[Mapping[str, Any]], Iterator[Headline]]] = {
    "merge_models": _merge_models,
    "merge_adapters": _merge_adapters,
    "merge_scale": _merge_scale,
    "checkpoint": _checkpoint,
    "compare": _compare,
    "mapper": _mapper,
    "coefficient_step": _coefficient_step,
    "throughput": _throughput,
    "startup": _startup,
}
"""One a script."""
