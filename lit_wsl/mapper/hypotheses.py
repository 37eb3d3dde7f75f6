"""Other readings of a mapping: what an ambiguous match could be instead."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import permutations, product

from lit_wsl.mapper.evidence import possible
from lit_wsl.mapper.forms import Form
from lit_wsl.mapper.inventory import Shape
from lit_wsl.mapper.units import Unit
from lit_wsl.mapper.words import role
from lit_wsl.state.operations import Fuse, PermuteHeads

LARGE = 4
"""Twins up to which every permutation is a reading; of more only exchanges of two are."""

Change = dict[int, Unit]
"""Units by identity to what replaces them."""


def readings(units: Sequence[Unit], heads: int | None, kv_heads: int | None) -> Iterator[Change]:
    """Readings of some units, plainer ones first: one kind of change, then two together."""
    exchanges = list(_exchanges(units))
    kinds = [exchanges, list(_orders(units)), list(_turns(units)), list(_heads(units, heads, kv_heads))]
    for changes in kinds:
        yield from changes
    for one in range(len(kinds)):
        for two in range(one + 1, len(kinds)):
            for first, second in product(kinds[one], kinds[two]):
                if not first.keys() & second.keys():
                    yield first | second
    for change in exchanges:
        changed = [change.get(id(unit), unit) for unit in units]
        back = {id(new): id(unit) for unit, new in zip(units, changed, strict=True)}
        for more in (*_orders(changed), *_turns(changed), *_heads(changed, heads, kv_heads)):
            yield change | {back[at]: unit for at, unit in more.items()}


def _exchanges(units: Sequence[Unit]) -> Iterator[Change]:
    """Permutations of targets among units that could have each other's."""
    for cluster in _clusters(units):
        if len(cluster) <= LARGE:
            orders: Iterator[tuple[int, ...]] = permutations(range(len(cluster)))
        else:
            orders = _transpositions(len(cluster))
        for order in orders:
            change = {}
            for at, other in enumerate(order):
                if at != other:
                    change[id(cluster[at])] = _with_targets(cluster[at], cluster[other])
            if change and None not in change.values():
                yield {at: unit for at, unit in change.items() if unit is not None}


def _transpositions(count: int) -> Iterator[tuple[int, ...]]:
    for one in range(count):
        for two in range(one + 1, count):
            order = list(range(count))
            order[one], order[two] = two, one
            yield tuple(order)


def _clusters(units: Sequence[Unit]) -> list[list[Unit]]:
    """Units of one level that could have each other's targets, in order."""
    left = [unit for unit in units if len(unit.sources) == len(unit.targets) == 1]
    clusters = []
    while left:
        first, *left = left
        cluster = [first, *(unit for unit in left if _could_swap(first, unit))]
        left = [unit for unit in left if unit not in cluster]
        if len(cluster) > 1:
            clusters.append(cluster)
    return clusters


def _could_swap(one: Unit, other: Unit) -> bool:
    is_level = len(one.targets[0].main.weights) == len(other.targets[0].main.weights)
    return is_level and _with_targets(one, other) is not None and _with_targets(other, one) is not None


def _with_targets(unit: Unit, other: Unit) -> Unit | None:
    """The unit with another's targets; None where shapes forbid it."""
    if len(unit.sources) > 1 or len(other.targets) > 1 or len(other.sources) > 1:
        return None
    forms = possible(unit.sources[0], other.targets[0], "lenient")
    return None if forms is None else replace(unit, targets=other.targets, forms=forms)


def _orders(units: Sequence[Unit]) -> Iterator[Change]:
    """Other orders of the parts of a join."""
    for unit in units:
        if unit.form("weight" if "weight" in unit.forms else next(iter(unit.forms))).kind != "join":
            continue
        parts = unit.targets if len(unit.targets) > 1 else unit.sources
        for order in permutations(parts):
            if order == tuple(parts) or [p.shapes() for p in order] != [p.shapes() for p in parts]:
                continue
            side = "targets" if len(unit.targets) > 1 else "sources"
            yield {
                id(unit): replace(unit, targets=list(order))
                if side == "targets"
                else replace(unit, sources=list(order))
            }


def _turns(units: Sequence[Unit]) -> Iterator[Change]:
    """The other ways in which shapes fit: square matrices transposed, all of one kind or one alone."""
    open_units = [unit for unit in units if any(len(forms) > 1 for forms in unit.forms.values())]
    every = {id(unit): _turned(unit) for unit in open_units}
    if len(every) > 1:
        yield every
    yield from ({at: unit} for at, unit in every.items())


def _turned(unit: Unit) -> Unit:
    return replace(unit, forms={leaf: forms[1:] + forms[:1] for leaf, forms in unit.forms.items()})


def _heads(units: Sequence[Unit], heads: int | None, kv_heads: int | None) -> Iterator[Change]:
    """Rows of query and key by pairs or halves; rows of a fused projection by head or by part."""
    if heads is None or kv_heads is None:
        return
    for to_pairs in (True, False):
        change = {}
        for unit in units:
            if (counts := _rotated(unit, heads, kv_heads)) is not None:
                change[id(unit)] = _permuted(unit, counts, to_pairs=to_pairs)
        if change:
            yield change
    for unit in units:
        yield from ({id(unit): other} for other in _groupings(unit, heads, kv_heads))


def _rotated(unit: Unit, heads: int, kv_heads: int) -> tuple[int, ...] | None:
    """Heads of each part of a unit that holds queries or keys; None for others."""
    parts = unit.targets if len(unit.targets) > 1 else unit.sources
    roles = [role(part.path, frozenset({"q", "k", "v", "qkv"})) for part in parts]
    if len(parts) == 1 and roles[0] not in ("q", "k"):
        return None
    counts = tuple({"q": heads, "k": kv_heads}.get(name or "", 0) for name in roles)
    return counts if any(counts) else None


def _permuted(unit: Unit, counts: tuple[int, ...], *, to_pairs: bool) -> Unit:
    operation = PermuteHeads(counts if len(counts) > 1 else counts[0], to_pairs=to_pairs)

    def change(form: Form) -> Form:
        if len(unit.targets) > 1:
            return replace(form, after=(operation,))
        return replace(form, before=(operation,))

    return replace(unit, forms={leaf: [change(form) for form in forms] for leaf, forms in unit.forms.items()})


def _groupings(unit: Unit, heads: int, kv_heads: int) -> Iterator[Unit]:
    """A fused projection with its rows grouped by head, taken apart and laid by part, or the other way round."""
    if len(unit.sources) + len(unit.targets) > 2:
        if unit.form("weight").kind == "join" and len(unit.sources) + len(unit.targets) == 4:
            groups = 1 if unit.form("weight").groups > 1 else kv_heads
            yield _each(unit, lambda form: replace(form, groups=groups))
        return
    sizes = _parts(next(shape for shape in unit.targets[0].shapes() if shape is not None), heads, kv_heads)
    if sizes is None or role(unit.targets[0].path, frozenset({"qkv"})) is None:
        return
    by_head, by_part = Fuse(sizes, groups=kv_heads), Fuse(sizes)
    for apart, together in ((by_head.inverse(), by_part), (by_part.inverse(), by_head)):
        steps = apart, together
        yield _each(unit, lambda form, steps=steps: replace(form, after=steps))  # type: ignore[misc]
    yield _each(unit, lambda form: replace(form, after=()))


def _parts(shape: Shape, heads: int, kv_heads: int) -> tuple[int, int, int] | None:
    rows = shape[0]
    if rows % (heads + 2 * kv_heads):
        return None
    head = rows // (heads + 2 * kv_heads)
    return heads * head, kv_heads * head, kv_heads * head


def _each(unit: Unit, change: Callable[[Form], Form]) -> Unit:
    return replace(unit, forms={leaf: [change(form) for form in forms] for leaf, forms in unit.forms.items()})
