"""``tree.json``: the shape of a tree of merges, what became of each merge, and what it means for every source."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_wsl.errors import CheckpointError
from lit_wsl.learning.hierarchy.shape import Node, TreeSettings
from lit_wsl.learning.saving import PROVENANCE
from lit_wsl.runs.identity import hash_inputs
from lit_wsl.runs.strict import read_mapping, write_json

TREE = "tree.json"


@dataclass
class TreeRecord:
    """What is known of a tree, written after each merge."""

    home: Path
    content: dict[str, Any]
    updates: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Path, kind and hash of every update that was written, by the merge or source that it is of."""

    @classmethod
    def open(cls, home: Path, kind: str, settings: TreeSettings, sources: Sequence[str]) -> "TreeRecord":
        """The record of a directory, or a new one; sources are known by their content, wherever they lie.

        Raises:
            CheckpointError: If it is damaged, or of another tree.
        """
        file = home / TREE
        identity = {
            "optimizer": kind,
            "arity": settings.arity,
            "order": settings.order,
            "inputs": [hash_inputs([source])[source] for source in sources],
        }
        if not file.is_file():
            return cls(home, {"status": "learning", **identity, "sources": list(sources), "cosines": None})
        content = read_mapping(file)
        differs = next((key for key, value in identity.items() if content.get(key, value) != value), None)
        if differs is not None:
            raise CheckpointError(f"{file} is of another tree ({differs} differs); choose another directory.")
        updates = content.get("updates")
        return cls(home, content, updates=updates if isinstance(updates, dict) else {})

    @property
    def cosines(self) -> list[list[float]] | None:
        """Of the sources' task vectors with each other, where the tree is made by them."""
        return self.content.get("cosines")

    @cosines.setter
    def cosines(self, found: list[list[float]]) -> None:
        self.content["cosines"] = found

    def begin(self, root: Node, tasks: Mapping[str, Sequence[str]]) -> None:
        """Write the shape of the tree; what is known of its merges stays."""
        known = self.content.get("nodes", {})
        self.content["nodes"] = {
            node.name: {
                **known.get(node.name, {}),
                "directory": node.name,
                "sources": [leaf + 1 for leaf in node.leaves],
                "tasks": list(tasks[node.name]),
            }
            for node in root.nodes()
        }
        self._write()

    def note(self, node: Node, children: Sequence[str], provenance: Mapping[str, Any]) -> None:
        """Write what became of a merge.

        Args:
            node: The merge.
            children: Its sources, in the order of its coefficients.
            provenance: What its run left.
        """
        self.content["nodes"][node.name] |= {
            "children": list(children),
            "objective": provenance.get("final_objective"),
            "best_mean": provenance.get("best_mean"),
            "optimizer_steps_completed": provenance.get("optimizer_steps_completed", 0),
            "elapsed_sec": provenance.get("elapsed_sec", 0.0),
        }
        self._write()

    def note_update(self, name: str, told: Mapping[str, Any]) -> None:
        """Write what an update is known by."""
        self.updates[name] = dict(told)
        self._write()

    def finish(self, root: Node, params: Mapping[str, Any]) -> dict[str, Any]:
        """Write sums over all merges, and the coefficients of the sources in the model that comes out; returns all."""
        if self.content["status"] == "complete":
            return read_mapping(self.home / TREE)
        nodes = self.content["nodes"]
        rows, effective = self._effective(root.name)
        whole = nodes[root.name]
        self.content |= {
            "status": "complete",
            "params": dict(params),
            "tasks": whole["tasks"],
            "rows": rows,
            "effective_coefficients": {str(leaf): effective[f"source_{leaf}"] for leaf in whole["sources"]},
            "final_objective": whole["objective"],
            "best_mean": whole["best_mean"],
            "optimizer_steps_completed": sum(one["optimizer_steps_completed"] for one in nodes.values()),
            "elapsed_sec": sum(one["elapsed_sec"] for one in nodes.values()),
        }
        self._write()
        return read_mapping(self.home / TREE)

    def _effective(self, name: str) -> tuple[list[str], dict[str, list[float]]]:
        """Rows of a merge, and by source the product of coefficients on its way up, one a row.

        A source that no merge below has a row for has no update there, and 0.
        """
        told = read_mapping(self.home / name / PROVENANCE)
        rows, values = told["rows"], told["final_coefficients"]
        found: dict[str, list[float]] = {}
        for place, child in enumerate(self.content["nodes"][name]["children"]):
            own = [row[place] for row in values]
            if child not in self.content["nodes"]:
                found[child] = own
                continue
            below_rows, below = self._effective(child)
            at = [below_rows.index(row) if row in below_rows else None for row in rows]
            for source, lower in below.items():
                pairs = zip(own, at, strict=True)
                found[source] = [0.0 if i is None else value * lower[i] for value, i in pairs]
        return rows, found

    def _write(self) -> None:
        self.content["updates"] = self.updates
        write_json(self.home / TREE, self.content)
