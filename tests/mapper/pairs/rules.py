"""True maps written as rules: templates of names, and what is done between them."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from lit_wsl.state.operations import Fuse, Operation, Split, Transpose
from lit_wsl.state.remap import Entry, WeightMap

from .pair import Shapes

Shape = tuple[int, ...]
Steps = Callable[[Sequence[Shape], Sequence[Shape]], tuple[Operation, ...]]


def copied(_sources: Sequence[Shape], _targets: Sequence[Shape]) -> tuple[Operation, ...]:
    """Nothing is done."""
    return ()


def transposed(sources: Sequence[Shape], _targets: Sequence[Shape]) -> tuple[Operation, ...]:
    """A matrix is transposed, a vector copied: `Conv1D` and `Linear` with their biases."""
    return (Transpose((1, 0)),) if len(sources[0]) == 2 else ()


def fused(sources: Sequence[Shape], _targets: Sequence[Shape]) -> tuple[Operation, ...]:
    """The rows of all sources, one source after the other."""
    return (Fuse(tuple(shape[0] for shape in sources)),)


def split(_sources: Sequence[Shape], targets: Sequence[Shape]) -> tuple[Operation, ...]:
    """The rows of the source, one target after the other."""
    return (Split(tuple(shape[0] for shape in targets)),)


@dataclass(frozen=True)
class Rule:
    """Names with ``{}`` for any part between dots; the n-th ``{}`` is the same part on both sides."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    steps: Steps = copied

    def entries(self, source: Shapes, target: Shapes) -> list[Entry]:
        """One entry for every target that fits the first template."""
        pattern = re.compile(re.escape(self.targets[0]).replace(r"\{\}", r"([^.]+)"))
        return [self._entry(match.groups(), source, target) for name in target if (match := pattern.fullmatch(name))]

    def _entry(self, parts: tuple[str, ...], source: Shapes, target: Shapes) -> Entry:
        sources = tuple(name.format(*parts) for name in self.sources)
        targets = tuple(name.format(*parts) for name in self.targets)
        steps = self.steps([source[name] for name in sources], [target[name] for name in targets])
        return Entry(sources, targets, steps)


def rule(source: str, target: str, steps: Steps = copied) -> Rule:
    """A rule from templates; several names of one side are separated by spaces."""
    return Rule(tuple(source.split()), tuple(target.split()), steps)


def renames(lines: str, steps: Steps = copied) -> list[Rule]:
    """A rule for every line of two templates, source and target."""
    return [rule(*line.split(), steps) for line in lines.strip().splitlines()]


def truth(*rules: Rule | Iterable[Rule]) -> Callable[[Shapes, Shapes], WeightMap]:
    """The map that the rules make, in the order of the target's state dict."""
    flat = [r for group in rules for r in ([group] if isinstance(group, Rule) else group)]

    def build(source: Shapes, target: Shapes) -> WeightMap:
        entries = [entry for each in flat for entry in each.entries(source, target)]
        place = {name: position for position, name in enumerate(target)}
        return WeightMap(tuple(sorted(entries, key=lambda entry: place[entry.targets[0]])))

    return build


def reverse(
    forth: Callable[[Shapes, Shapes], WeightMap],
) -> Callable[[Shapes, Shapes], WeightMap]:
    """The truth of the way back, in the order of the way back's target."""

    def build(source: Shapes, target: Shapes) -> WeightMap:
        place = {name: position for position, name in enumerate(target)}
        back = forth(target, source).inverse()
        return WeightMap(tuple(sorted(back, key=lambda entry: place[entry.targets[0]])))

    return build
