"""Recipes between modules as recipes between files: transformers renames and joins some tensors while it loads them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import nn

from lit_wsl.cli.loading_rules import converted, loading_groups
from lit_wsl.errors import CheckpointError
from lit_wsl.mapper.inventory import take_inventory
from lit_wsl.state.reader import StateReader
from lit_wsl.state.remap import Entry, WeightMap

_REMEDY = "map the files instead, without `--verify`"
_NO_RECIPE = "transformers computes it in a way that no recipe expresses"


@dataclass(frozen=True)
class StoredNames:
    """How loading makes the tensors of a transformers model from those of its files."""

    where: str
    """The files, for messages."""
    made: dict[str, Entry]
    """Name in the module to what makes it."""
    tied: dict[str, Entry]
    """The same for names of tied tensors that the files hold under another of their names."""
    doubts: dict[str, str]
    """Names in the module of which it is not certain what makes them, with the reason."""
    unused: list[str]
    """Names in the files that loading puts nowhere."""
    buffers: frozenset[str]
    """Buffers of the module, which a file need not have."""

    @classmethod
    def of(cls, model: nn.Module, reader: StateReader) -> "StoredNames":
        """What transformers would do with a checkpoint, from headers alone.

        Args:
            model: A transformers model, on any device.
            reader: The opened checkpoint.
        """
        infos = {name: reader.info(name) for name in reader.keys()}
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        made: dict[str, Entry] = {}
        doubts: dict[str, str] = {}
        unused: list[str] = []
        for name, (converter, members) in loading_groups(model, reader.keys()).items():
            if name not in shapes:
                unused += [old for old, _ in members]
            elif converter is None and len(members) > 1:
                doubts[name] = f"{' and '.join(old for old, _ in members)} both take its place"
            elif converter is None:
                made[name] = Entry((members[0][0],), (name,))
            elif (entry := converted(name, converter, members, infos)) is not None:
                made.update(dict.fromkeys(entry.targets, entry))
            else:
                doubts[name] = _NO_RECIPE
        doubts |= _misfits(made, reader, shapes)
        made = {name: entry for name, entry in made.items() if doubts.keys().isdisjoint(entry.targets)}
        inventory = take_inventory(model)
        buffers = frozenset(weight.name for weight in inventory.weights if weight.kind != "parameter")
        return cls(reader.where, made, _tied(made, inventory.aliases), doubts, unused, buffers)

    def as_sources(self, recipes: WeightMap) -> WeightMap:
        """Recipes that read the files, from those that read the module.

        A recipe that reads buffers alone that the files lack is left out.

        Raises:
            CheckpointError: If it is not certain what makes a tensor that is read.
        """
        lost = self.buffers.difference(self.made)
        return WeightMap(tuple(self._read(entry) for entry in recipes if not lost.issuperset(entry.sources)))

    def as_targets(self, recipes: WeightMap) -> WeightMap:
        """Recipes that make what the files hold, from those that make the module's tensors.

        What the files lack keeps its name in the module, by which transformers loads it too.
        """
        return WeightMap(tuple(self._write(entry) for entry in recipes))

    def _read(self, entry: Entry) -> Entry:
        for name in entry.sources:
            if name in self.doubts:
                raise CheckpointError(
                    f"{self.where}: what makes {name!r} of the model is not certain ({self.doubts[name]}); {_REMEDY}."
                )
            if name not in self.made and name not in self.tied:
                raise CheckpointError(f"{self.where} lacks {name!r}, which the map reads; save the whole model.")
        made = [self.made.get(name) or self.tied[name] for name in entry.sources]
        if all(map(_is_copy, made)):
            return replace(entry, sources=tuple(one.sources[0] for one in made))
        if made[0].targets == entry.sources:
            return replace(entry, sources=made[0].sources, operations=made[0].operations + entry.operations)
        raise CheckpointError(
            f"{self.where}: {', '.join(entry.targets)} cannot be made in one step from the file, of whose "
            f"{made[0].sources[0]!r} loading makes {', '.join(made[0].targets)}; {_REMEDY}."
        )

    def _write(self, entry: Entry) -> Entry:
        made = [self.made.get(name) for name in entry.targets]
        whole = made[0]
        if whole is not None and whole.operations and whole.targets == entry.targets:
            return replace(entry, targets=whole.sources, operations=entry.operations + whole.inverse().operations)
        pairs = zip(entry.targets, made, strict=True)
        return replace(entry, targets=tuple(one.sources[0] if one and _is_copy(one) else name for name, one in pairs))


def _is_copy(entry: Entry) -> bool:
    return not entry.operations and len(entry.sources) == 1


def _misfits(made: Mapping[str, Entry], reader: StateReader, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Tensors whose shape in the file is not that in the module."""
    found = {}
    for entry in {id(entry): entry for entry in made.values()}.values():
        for name, info in WeightMap((entry,)).planned(reader).items():
            if info.shape != shapes.get(name):
                found[name] = f"its shape {shapes.get(name)} is {info.shape} in the file"
    return found


def _tied(made: Mapping[str, Entry], aliases: Mapping[str, str]) -> dict[str, Entry]:
    """What makes tied tensors under the names that a file lacks, from those that it has."""
    found = {}
    for pair in aliases.items():
        for one, other in (pair, pair[::-1]):
            if one not in made and other in made and len(made[other].targets) == 1:
                found[one] = replace(made[other], targets=(one,))
    return found
