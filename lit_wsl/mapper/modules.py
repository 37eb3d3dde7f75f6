"""Templates of one module belong together: its weight and bias go to one module of the other model."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from lit_wsl.mapper.inventory import Shape
from lit_wsl.mapper.templates import Path, Template
from lit_wsl.mapper.words import features, meanings

_LEAVES = {
    "weight": "weight",
    "kernel": "weight",
    "scale": "weight",
    "gamma": "weight",
    "g": "weight",
    "embedding": "weight",
    "bias": "bias",
    "beta": "bias",
    "b": "bias",
}
_ENDING = re.compile(r"(.+)_(weight|bias|kernel)")
BESIDE = 0.4
"""Weight of words that only stand beside a module."""


@dataclass(slots=True, eq=False)
class Module:
    """A module at all its positions, or a parameter that stands alone."""

    path: Path
    leaves: dict[str, Template]
    """Tensors by what they are to the module: ``weight``, ``bias``, the name of a statistic or buffer."""
    rank: int = 0
    """Place among the modules of its level."""
    meaning: dict[str, float] = field(default_factory=dict)

    @property
    def main(self) -> Template:
        """The weight, or the only tensor."""
        return self.leaves.get("weight") or next(iter(self.leaves.values()))

    @property
    def label(self) -> str:
        """Name of the main tensor at its first position."""
        return self.main.first.name

    def shapes(self) -> tuple[Shape | None, ...]:
        """Shapes of the main tensor at every position."""
        return self.main.shapes

    def trained(self) -> list[str]:
        """Leaves that are parameters."""
        return [leaf for leaf, template in self.leaves.items() if template.first.kind == "parameter"]

    def without(self, leaves: set[str]) -> "Module | None":
        """The module without some of its tensors; None when nothing is left."""
        left = {leaf: template for leaf, template in self.leaves.items() if leaf not in leaves}
        return Module(self.path, left, self.rank, self.meaning) if left else None


def modules_of(templates: Sequence[Template]) -> list[Module]:
    """Templates grouped by their module, in order."""
    found: dict[Path, Module] = {}
    for template in templates:
        path, leaf = _split(template)
        module = found.get(path)
        if module is None or leaf in module.leaves:
            path = path if module is None else template.path
            module = found[path] = Module(path, {})
        module.leaves[leaf] = template
    found = _with_weights(found)
    around = _around_numbers(found)
    for rank, module in enumerate(found.values()):
        module.rank = rank
        module.meaning = dict(features(module.main.context + _words(module)))
        for word in {word for end in range(1, len(module.path)) for word in around.get(module.path[:end], ())}:
            module.meaning.setdefault(word, BESIDE)
    return list(found.values())


def _with_weights(modules: dict[Path, Module]) -> dict[Path, Module]:
    """A parameter of any name is the weight of the module whose bias stands alone beside it and fits it."""
    alone: dict[Path, list[Path]] = {}
    for path, module in modules.items():
        if path and list(module.leaves) == ["weight"] and module.main.path == path:
            alone.setdefault(path[:-1], []).append(path)
    for owner, paths in alone.items():
        if owner not in modules or len(paths) > 1 or modules[owner].trained() != ["bias"]:
            continue
        weight, bias = modules[paths[0]].main, modules[owner].leaves["bias"]
        if len(bias.first.shape) == 1 and bias.first.shape[0] in weight.first.shape:
            modules[owner].leaves = {"weight": weight, **modules[owner].leaves}
            del modules[paths[0]]
    return modules


def _around_numbers(paths: Iterable[Path]) -> dict[Path, set[str]]:
    """Words inside containers that have but a number: ``layer.0`` is known by the attention in it."""
    around: dict[Path, set[str]] = {}
    for path in paths:
        for end in range(1, len(path)):
            if path[end - 1].isdigit() and end + 1 < len(path):
                around.setdefault(path[:end], set()).update(meanings(path[end]))
    return around


def _split(template: Template) -> tuple[Path, str]:
    """Path of the owner and what the tensor is to it.

    ``in_proj_bias`` is the bias of ``in_proj``; a parameter with a name of its own is the weight of a module of that
    name.
    """
    *owner, last = template.path
    if template.first.kind != "parameter":
        return tuple(owner), last if template.first.kind == "statistic" else f"buffer {last}"
    if last in _LEAVES:
        return tuple(owner), _LEAVES[last]
    if match := _ENDING.fullmatch(last):
        return (*owner, match[1]), _LEAVES[match[2]]
    return template.path, "weight"


def _words(module: Module) -> Path:
    """What the name says: the path, and the leaf's own name where there is no path."""
    return module.path or module.main.path
