"""Settle what shapes leave open, by what the rest of the model does: turned squares, order of rows within heads."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

from lit_wsl.mapper.forms import Form
from lit_wsl.mapper.inventory import Inventory
from lit_wsl.mapper.modules import Module
from lit_wsl.mapper.units import Unit
from lit_wsl.mapper.words import role
from lit_wsl.state.operations import Fuse, Operation, PermuteHeads, Split

UNKNOWN = 0.5
"""Highest confidence of a match whose rows may be ordered otherwise."""

OWN = "own name"
"""Kind of a parameter that no layer's class or usual leaf describes."""
_ROTARY = frozenset({"q", "k", "qkv"})


def settle_turns(units: Sequence[Unit]) -> None:
    """Square matrices are transposed where the oblong ones of the same kinds of module are.

    Layers of the same depth vote first, then the whole model, but for parameters with names of their own, which have
    nothing in common with one another.
    """
    near: defaultdict[object, Counter[bool]] = defaultdict(Counter)
    far: defaultdict[object, Counter[bool]] = defaultdict(Counter)
    for unit in units:
        for leaf, forms in unit.forms.items():
            turns = {_is_turned(form) for form in forms}
            if leaf == "weight" and len(turns) == 1 and _rank(unit) >= 2:
                [turned] = turns
                near[_kinds(unit), _depth(unit)][turned] += 1
                far[_kinds(unit)][turned] += 1
    for unit in units:
        for leaf, forms in unit.forms.items():
            if leaf == "weight" and len({_is_turned(form) for form in forms}) == 2:
                votes = near[_kinds(unit), _depth(unit)] or (
                    far[_kinds(unit)] if OWN not in _kinds(unit) else Counter()
                )
                turned = votes[True] > votes[False]
                chosen = [form for form in forms if _is_turned(form) == turned]
                unit.forms[leaf] = chosen + [form for form in forms if form not in chosen]


def _is_turned(form: Form) -> bool:
    return form.is_turned if form.kind in ("join", "stack") else form.kind.startswith("transpose")


def _rank(unit: Unit) -> int:
    return len(unit.targets[0].main.first.shape)


def _depth(unit: Unit) -> int:
    """Positions of the level: layers of one list have as many."""
    return len(unit.targets[0].main.weights)


def _kinds(unit: Unit) -> tuple[str, str]:
    return _kind(unit.sources[0]), _kind(unit.targets[0])


def _kind(module: Module) -> str:
    """What decides how a matrix lies: the class of its layer, else the name of the tensor, else that it has its own."""
    layer = module.main.first.layer
    if layer in ("Linear", "Conv1D", "Embedding", "NonDynamicallyQuantizableLinear"):
        return "Linear" if layer.startswith("NonDynamically") else layer
    last = module.main.path[-1]
    if "embed" in module.meaning:
        return "Embedding"
    return last if last in ("weight", "kernel") or last.endswith("_weight") else OWN


def settle_heads(units: Sequence[Unit], source: Inventory, target: Inventory) -> None:
    """Reorder the rows of query and key, and of fused projections, where both models are known to lay them otherwise.

    Where the number of heads is not known, or one model's way is not, the match is marked as ambiguous.
    """
    heads = source.heads or target.heads
    kv_heads = source.kv_heads or target.kv_heads or heads
    left, right = rotary_order(source), rotary_order(target)
    if "pairs" in (left, right) and left != right:
        for unit in units:
            _reorder(unit, heads, kv_heads, left, right)
    for unit in units:
        _regroup(unit, heads, kv_heads, source, target)


def rotary_order(inventory: Inventory) -> str | None:
    """``pairs`` (original Llama code, torchtune), ``halves`` (transformers, litgpt), or None where it is not known."""
    ends = {".".join(weight.path[-3:]) for weight in inventory.weights}

    def has(*endings: str) -> bool:
        return all(any(end.endswith(ending) for end in ends) for ending in endings)

    if has("attention.wq.weight", "feed_forward.w1.weight") or has("attn.q_proj.weight", "sa_norm.scale"):
        return "pairs"
    if has("self_attn.q_proj.weight", "mlp.down_proj.weight") or has("attn.qkv.weight", "norm_1.weight"):
        return "halves"
    return None


def _reorder(unit: Unit, heads: int | None, kv_heads: int | None, left: str | None, right: str | None) -> None:
    roles = [role(module.path, _ROTARY | {"v"}) for module in unit.sources + unit.targets]
    if not any(name in _ROTARY for name in roles):
        return
    sides = unit.sources if len(unit.sources) > 1 or len(unit.targets) == 1 else unit.targets
    counts = tuple(_heads_of(module, heads, kv_heads) for module in sides)
    if None in (left, right) or None in counts or (len(sides) == 1 and roles[0] == "qkv"):
        _doubt(unit, "rows of query and key may be ordered by halves or by pairs (rotary embedding)")
        return
    known = tuple(count or 0 for count in counts)
    operation = PermuteHeads(known if len(known) > 1 else known[0], to_pairs=right == "pairs")
    if len(unit.targets) > 1:
        _each(unit, lambda form: replace(form, after=(operation,)))
    else:
        _each(unit, lambda form: replace(form, before=(operation,)))


def _heads_of(module: Module, heads: int | None, kv_heads: int | None) -> int | None:
    """Heads of a projection; 0 for one that no rotation touches, None where it is not known."""
    name = role(module.path, _ROTARY | {"v"})
    return heads if name == "q" else kv_heads if name == "k" else 0


def _regroup(unit: Unit, heads: int | None, kv_heads: int | None, source: Inventory, target: Inventory) -> None:
    """Query, key and value of each head together, or all queries first."""
    left = [_is_interleaved(module, source) for module in unit.sources]
    right = [_is_interleaved(module, target) for module in unit.targets]
    if left == right or not any(left + right):
        return
    if heads is None or kv_heads is None:
        _doubt(unit, "rows of the fused projection may be grouped by head, and the number of heads is not known")
        return
    if len(left) > 1 or len(right) > 1:
        _each(unit, lambda form: replace(form, groups=kv_heads))
    else:
        _each(unit, lambda form: replace(form, after=_regrouping(unit, heads, kv_heads, to_groups=any(right))))
    if not (_is_surely_interleaved(source) or _is_surely_interleaved(target)):
        _doubt(unit, "rows of the fused projection may be grouped by head or not")


def _regrouping(unit: Unit, heads: int, kv_heads: int, *, to_groups: bool) -> tuple[Operation, ...]:
    rows = next(shape for shape in unit.targets[0].shapes() if shape is not None)[0]
    head = rows // (heads + 2 * kv_heads)
    sizes = (heads * head, kv_heads * head, kv_heads * head)
    groups = (1, kv_heads) if to_groups else (kv_heads, 1)
    return Split(sizes, groups=groups[0]), Fuse(sizes, groups=groups[1])


def _is_interleaved(module: Module, inventory: Inventory) -> bool:
    return "query_key_value" in module.path


def _is_surely_interleaved(inventory: Inventory) -> bool:
    """GPT-NeoX and BLOOM group rows by head; other models with these names may not."""
    names = {part for weight in inventory.weights for part in weight.path}
    return "query_key_value" in names and bool(names & {"gpt_neox", "embed_in", "word_embeddings_layernorm"})


def _each(unit: Unit, change: Callable[[Form], Form]) -> None:
    unit.forms = {leaf: [change(form) for form in forms] for leaf, forms in unit.forms.items()}


def _doubt(unit: Unit, note: str) -> None:
    unit.confidence = min(unit.confidence, UNKNOWN)
    unit.note = unit.note or note
