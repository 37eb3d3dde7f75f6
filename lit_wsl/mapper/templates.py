"""Repeated blocks: names that differ in a block's index only become one template, and lists of blocks are aligned."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from lit_wsl.mapper.inventory import Shape, Weight

Path = tuple[str, ...]
Index = tuple[int, ...]

_SUFFIXED = re.compile(r"(.*?)_?(\d+)")


@dataclass(slots=True, eq=False)
class Template:
    """Tensors with one role at several positions: one per block of a list, or a single one outside any."""

    path: Path
    """Components of the name inside the block."""
    weights: list[Weight | None]
    """The tensor at each position; None where the block has none."""
    shapes: tuple[Shape | None, ...] = ()
    size: int = 0
    """Entries at all positions together."""
    context: Path = ()
    """Components in front of the block."""
    first: Weight = field(init=False)

    def __post_init__(self) -> None:
        """Keep what is asked for often."""
        self.shapes = tuple(None if weight is None else weight.shape for weight in self.weights)
        present = [weight for weight in self.weights if weight is not None]
        self.size = sum(weight.numel for weight in present)
        self.first = present[0]


@dataclass(slots=True, eq=False)
class Family:
    """A list of blocks, or a list of lists taken as one sequence: ``stages.*.blocks.*``."""

    pattern: Path
    blocks: dict[Index, list[Template]]
    """Templates of each block by its indices, in numerical order."""

    def __post_init__(self) -> None:
        """Blocks in the order of their numbers, ten after nine."""
        self.blocks = dict(sorted(self.blocks.items()))

    def sizes(self) -> list["Block"]:
        """What each block holds, for comparison."""
        return [_block(tuple(sorted(template.size for template in block))) for block in self.blocks.values()]


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Sizes of a block's tensors."""

    total: int
    sizes: Counter[int]


@lru_cache(maxsize=4096)
def _block(sizes: tuple[int, ...]) -> Block:
    """One object for equal blocks, so that they are compared by identity."""
    return Block(sum(sizes), Counter(sizes))


@lru_cache(maxsize=65536)
def likeness(one: Block, other: Block) -> float:
    """Share of the entries of two blocks that tensors of equal size hold; 1 for blocks of equal size.

    Joining, cutting and turning tensors changes no size of a whole block, so equal totals are taken as equal.
    """
    if one.total == other.total:
        return 1.0
    common = sum(size * min(count, other.sizes[size]) for size, count in one.sizes.items())
    return common / max(one.total, other.total)


def templates_of(weights: Iterable[Weight]) -> list[Template]:
    """One template with a single position for each tensor of a model."""
    return [Template(weight.path, [weight]) for weight in weights]


def families_of(templates: Sequence[Template]) -> list[Family]:
    """Every list of blocks among templates, nested lists also as one sequence.

    A block has at least two modules, so that ``Sequential`` lists of single layers and ``fc1, fc2`` are none; a
    numbered name (``layer1``) needs a sibling with another number.
    """
    below: defaultdict[Path, set[Path]] = defaultdict(set)
    for template in templates:
        path = template.path
        owner = path[:-1]
        for end in range(1, len(path)):
            below[path[:end]].add(owner)
    numbered = _numbered(below)
    found: defaultdict[Path, defaultdict[Index, list[Template]]] = defaultdict(lambda: defaultdict(list))
    for template in templates:
        pattern: Path = ()
        index: Index = ()
        for end, component in enumerate(template.path[:-1], 1):
            number = numbered.get(template.path[:end])
            if number is None:
                pattern += (component,)
            else:
                pattern += (number[0],)
                index += (number[1],)
                found[pattern][index].append(template)
    return [Family(pattern, dict(blocks)) for pattern, blocks in found.items()]


def _numbered(below: dict[Path, set[Path]]) -> dict[Path, tuple[str, int]]:
    """Prefixes that name a block of a list, with the list's name and the block's number."""
    found: dict[Path, tuple[str, int]] = {}
    suffixed: defaultdict[tuple[Path, str], list[tuple[Path, int]]] = defaultdict(list)
    for prefix, owners in below.items():
        component = prefix[-1]
        if len(owners) < 2 or not component[-1:].isdigit():
            continue
        if component.isdigit():
            found[prefix] = ("*", int(component))
        elif match := _SUFFIXED.fullmatch(component):
            suffixed[prefix[:-1], match[1]].append((prefix, int(match[2])))
    for (_, stem), members in suffixed.items():
        if len(members) > 1:
            found.update({prefix: (stem + "*", number) for prefix, number in members})
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Alignment:
    """Which blocks of one list stand for which of another."""

    source: Family
    target: Family
    pairs: list[tuple[Index, Index]]
    explained: float
    """Entries that aligned blocks have in common."""
    is_exact: bool
    """Both lists are as long, and all pairs of equal size."""
    is_unique: bool
    """No other alignment is as good; False where a list has equal blocks without partner."""


def align(source: Family, target: Family) -> Alignment | None:
    """The order-keeping alignment of two lists of blocks with most entries in common; None where nothing fits.

    Among equally good ones the first blocks are taken.
    """
    one, two = source.sizes(), target.sizes()
    left, right = list(source.blocks), list(target.blocks)
    if len(one) == len(two) and all(a.total == b.total for a, b in zip(one, two, strict=True)):
        explained = float(sum(block.total for block in one))
        return Alignment(source, target, list(zip(left, right, strict=True)), explained, True, True)
    if by_size := _by_size(one, two):
        explained = float(sum(block.total for block in one))
        return Alignment(source, target, [(left[i], right[j]) for i, j in by_size], explained, True, True)
    if not any(likeness(a, b) > 0.3 for a in set(one) for b in set(two)):
        return None
    pairs, explained = _best_order(one, two)
    chosen = [(left[i], right[j]) for i, j in pairs]
    is_unique = _is_unique(one, {i for i, _ in pairs}) and _is_unique(two, {j for _, j in pairs})
    return Alignment(source, target, chosen, explained, False, is_unique)


def _by_size(one: list[Block], two: list[Block]) -> list[tuple[int, int]]:
    """Pairs of blocks of equal size where every size occurs once: a decoder that is numbered from the other end."""
    where = {block.total: j for j, block in enumerate(two)}
    totals = [block.total for block in one]
    if len(one) != len(two) or len(where) < len(two) or set(totals) != set(where):
        return []
    return [(i, where[total]) for i, total in enumerate(totals)]


def _is_unique(blocks: list[Block], taken: set[int]) -> bool:
    """Whether no block that is left over equals one that was taken."""
    used = {blocks[i] for i in taken}
    return not any(block in used for i, block in enumerate(blocks) if i not in taken)


def _best_order(one: list[Block], two: list[Block]) -> tuple[list[tuple[int, int]], float]:
    """Pairs of a longest common subsequence whose matches are weighted by common size."""
    n, m = len(one), len(two)
    best = [[0.0] * (m + 1) for _ in range(n + 1)]
    gains: dict[tuple[Block, Block], float] = {}
    for a in set(one):
        for b in set(two):
            like = likeness(a, b)
            gains[a, b] = like * min(a.total, b.total) if like > 0.3 else 0.0
    for i in range(n - 1, -1, -1):
        row, below = best[i], best[i + 1]
        for j in range(m - 1, -1, -1):
            row[j] = max(below[j + 1] + gains[one[i], two[j]], below[j], row[j + 1])
    pairs, i, j = [], 0, 0
    while i < n and j < m:
        gain = gains[one[i], two[j]]
        if gain > 0 and best[i][j] == best[i + 1][j + 1] + gain:
            pairs.append((i, j))
            i, j = i + 1, j + 1
        elif best[i][j] == best[i + 1][j]:
            i += 1
        else:
            j += 1
    return pairs, best[0][0]


def spread(alignment: Alignment) -> tuple[list[Template], list[Template]]:
    """Templates inside the aligned blocks of both sides, with a position for every pair of blocks.

    Templates that already have several positions multiply them.
    """
    pairs = alignment.pairs
    left = [alignment.source.blocks[index] for index, _ in pairs]
    right = [alignment.target.blocks[index] for _, index in pairs]
    depth = len(alignment.source.pattern), len(alignment.target.pattern)
    return _merged(left, depth[0]), _merged(right, depth[1])


def split_by_structure(alignment: Alignment) -> list[Alignment]:
    """Parts of an alignment whose blocks hold the same modules, the largest first.

    The first block of a stage may have a shortcut, and a role of another block's name.
    """
    groups: defaultdict[object, list[tuple[Index, Index]]] = defaultdict(list)
    for one, two in alignment.pairs:
        key = _structure(alignment.source, one), _structure(alignment.target, two)
        groups[key].append((one, two))
    return [replace(alignment, pairs=pairs) for pairs in sorted(groups.values(), key=len, reverse=True)]


def _structure(family: Family, index: Index) -> frozenset[Path]:
    """Names inside a block, whatever their numbers."""
    depth = len(family.pattern)
    return frozenset(_unnumbered(template.path[depth:]) for template in family.blocks[index])


@lru_cache(maxsize=65536)
def _unnumbered(path: Path) -> Path:
    return tuple("*" if component.isdigit() else component for component in path)


def _merged(blocks: list[list[Template]], depth: int) -> list[Template]:
    """Templates of parallel blocks by their path inside."""
    if not blocks or not blocks[0]:
        return []
    width = len(blocks[0][0].weights)
    grid: dict[Path, list[Weight | None]] = {}
    place: dict[Path, int] = {}
    context = blocks[0][0].context + blocks[0][0].path[:depth]
    for at, block in enumerate(blocks):
        for rank, template in enumerate(block):
            path = template.path[depth:]
            row = grid.get(path)
            if row is None:
                row = grid[path] = [None] * (width * len(blocks))
                place[path] = rank
            row[at * width : (at + 1) * width] = template.weights
    return [Template(path, grid[path], context=context) for path in sorted(grid, key=place.__getitem__)]
