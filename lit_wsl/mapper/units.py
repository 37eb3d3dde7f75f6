"""A match of modules: who becomes whom, in which form, how sure it is, and what else it could be."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from lit_wsl.mapper.evidence import Forms
from lit_wsl.mapper.forms import Form
from lit_wsl.mapper.inventory import Weight
from lit_wsl.mapper.modules import Module
from lit_wsl.state.remap import Entry


@dataclass(frozen=True)
class ScoreBreakdown:
    """Evidence for a match, each part in [0, 1]."""

    shape: float
    """1 for a copy at every position; less for other operations, missing tensors and buffers that do not fit."""
    name: float
    """Likeness of the words of both names."""
    hierarchy: float
    """Agreement of containers and neighbours."""
    order: float
    """Agreement of places among tensors of the same shape."""
    total: float
    """The parts, weighted."""
    confidence: float
    """Calibrated share of right matches among those with such evidence."""


@dataclass(eq=False)
class Unit:
    """Modules of the source that make modules of the target, the same way in every block."""

    sources: list[Module]
    targets: list[Module]
    forms: Forms
    """For each leaf its possible forms; the first is taken."""
    shape: float = 1.0
    name: float = 1.0
    hierarchy: float = 0.5
    order: float = 0.5
    total: float = 0.0
    confidence: float = 0.0
    rivals: list["Rival"] = field(default_factory=list)
    note: str = ""
    """Why it is not certain, for a reader."""
    level: object = field(default=None, repr=False)
    """The scores of all pairs that it was chosen from, for a match of one to one."""

    def form(self, leaf: str) -> Form:
        """The form that is taken for a leaf."""
        return self.forms[leaf][0]

    def breakdown(self) -> ScoreBreakdown:
        """The scores, as the user sees them."""
        return ScoreBreakdown(self.shape, self.name, self.hierarchy, self.order, self.total, self.confidence)

    def entries(self) -> Iterator[tuple[Entry, list[Weight], list[Weight]]]:
        """The recipe of every tensor of the targets that the sources make, with both sides' tensors."""
        for leaf in self.forms:
            left = [module.leaves[leaf] for module in self.sources if leaf in module.leaves]
            right = [module.leaves[leaf] for module in self.targets if leaf in module.leaves]
            for at in range(len(right[0].weights)):
                sources = [template.weights[at] for template in left]
                targets = [template.weights[at] for template in right]
                if any(weight is None for weight in sources + targets):
                    continue
                known = [weight for weight in sources if weight], [weight for weight in targets if weight]
                operations = self.form(leaf).operations(*([w.shape for w in side] for side in known))
                names = [tuple(weight.name for weight in side) for side in known]
                yield Entry(names[0], names[1], operations), *known


@dataclass(frozen=True, eq=False)
class Rival:
    """Another reading: this unit and ``other`` might have each other's targets."""

    other: Unit
    margin: float
    """By how much the chosen reading is better."""
