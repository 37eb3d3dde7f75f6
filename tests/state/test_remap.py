"""Weight maps: every operation loses nothing, in memory and from file to file."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from lit_wsl.errors import CheckpointError, ConfigError
from lit_wsl.state import remap
from lit_wsl.state.operations import Fuse, PermuteHeads, Reshape, Split, Stack, Transpose, Unstack
from lit_wsl.state.reader import MemoryReader, open_state
from lit_wsl.state.remap import Entry, WeightMap, copies

SHAPES = {
    "a": (6, 4),
    "q": (8, 4),
    "k": (4, 4),
    "v": (4, 4),
    "conv": (6, 4, 1, 1),
    "e0": (3, 2),
    "e1": (3, 2),
    "fused": (16, 4),
    "table": (2, 3, 5),
    "turned": (4, 12),
}
MAP = WeightMap(
    (
        Entry(("a",), ("x.a",), (Transpose(),)),
        Entry(("q", "k", "v"), ("x.qkv",), (Fuse((8, 4, 4), groups=2),)),
        Entry(("conv",), ("x.linear",), (Reshape((6, 4, 1, 1), (6, 4)),)),
        Entry(("e0", "e1"), ("x.experts",), (Stack(2),)),
        Entry(("fused",), ("x.gate", "x.up"), (Split((8, 8)),)),
        Entry(("table",), ("x.t0", "x.t1"), (Unstack(2), Transpose())),
        Entry(("turned",), ("x.q", "x.k", "x.v"), (Transpose(), Split((4, 4, 4)), PermuteHeads(2))),
    )
)


@pytest.fixture
def state():
    return {name: torch.randn(shape).bfloat16() for name, shape in SHAPES.items()}


def test_the_way_back_gives_every_tensor_again(state):
    made = MAP.apply(state)
    assert list(made) == MAP.targets()
    back = MAP.inverse().apply(made)
    assert set(back) == set(state)
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


def test_what_each_operation_makes(state):
    made = MAP.apply(state)
    assert torch.equal(made["x.a"], state["a"].T)
    q, k, v = state["q"], state["k"], state["v"]
    assert torch.equal(made["x.qkv"], torch.cat([q[:4], k[:2], v[:2], q[4:], k[2:], v[2:]]))
    assert torch.equal(made["x.linear"], state["conv"][:, :, 0, 0])
    assert torch.equal(made["x.experts"][1], state["e1"])
    assert torch.equal(made["x.up"], state["fused"][8:])
    assert torch.equal(made["x.t1"], state["table"][1].T)
    halves = state["turned"].T[4:8]
    assert torch.equal(made["x.k"], halves)  # heads of two rows have one pair each: nothing to reorder


def test_rotary_halves_become_pairs():
    rows = torch.arange(12.0)[:, None].expand(12, 3)
    paired = PermuteHeads(heads=2).apply([rows])[0]
    assert paired[:, 0].tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
    assert torch.equal(PermuteHeads(heads=2).inverse().apply([paired])[0], rows)


def test_json_keeps_the_map(tmp_path, state):
    MAP.save(tmp_path / "map.json")
    again = WeightMap.load(tmp_path / "map.json")
    assert again == MAP
    assert all(torch.equal(tensor, MAP.apply(state)[name]) for name, tensor in again.apply(state).items())


@pytest.mark.parametrize("piece", [1, 20, 50, 1 << 20])
def test_file_to_file(tmp_path, state, monkeypatch, piece):
    monkeypatch.setattr(remap, "PIECE_BYTES", piece)
    save_file(state, tmp_path / "in.safetensors")
    MAP.write(open_state(tmp_path / "in.safetensors"), tmp_path / "new" / "out.safetensors")
    written = load_file(tmp_path / "new" / "out.safetensors")
    made = MAP.apply(state)
    assert set(written) == set(made)
    assert all(torch.equal(written[name], made[name]) for name in made)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out.safetensors"]


def test_the_plan_is_what_is_made(state):
    planned, made = MAP.planned(MemoryReader(state)), MAP.apply(state)
    assert [(name, info.shape, info.dtype) for name, info in planned.items()] == [
        (name, tuple(tensor.shape), tensor.dtype) for name, tensor in made.items()
    ]


def test_the_way_back_from_file_to_file(tmp_path, state):
    save_file(state, tmp_path / "in.safetensors")
    MAP.write(open_state(tmp_path / "in.safetensors"), tmp_path / "out.safetensors")
    MAP.inverse().write(open_state(tmp_path / "out.safetensors"), tmp_path / "back.safetensors")
    back = load_file(tmp_path / "back.safetensors")
    assert set(back) == set(state)
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


def test_turned_tensors_larger_than_a_piece(tmp_path):
    shapes = {"matrix": (700, 300), "experts": (2, 700, 500), "conv": (9, 8, 7)}
    state = {name: torch.randn(shape) for name, shape in shapes.items()}
    turns = {"matrix": (1, 0), "experts": (0, 2, 1), "conv": (2, 0, 1)}
    recipes = WeightMap(tuple(Entry((name,), (name,), (Transpose(dims),)) for name, dims in turns.items()))
    recipes.write(MemoryReader(state), tmp_path / "out.safetensors")
    written = load_file(tmp_path / "out.safetensors")
    assert all(torch.equal(written[name], tensor.permute(turns[name])) for name, tensor in state.items())


def test_joined_experts_are_laid_out_as_they_are_made(tmp_path):
    parts = {f"{part}{expert}": torch.randn(3, 2) for expert in range(2) for part in ("gate", "up")}
    steps = (Fuse((3,) * 4), Reshape((12, 2), (2, 6, 2)))
    WeightMap((Entry(tuple(parts), ("experts",), steps),)).write(MemoryReader(parts), tmp_path / "out.safetensors")
    written = load_file(tmp_path / "out.safetensors")["experts"]
    assert torch.equal(written[1], torch.cat([parts["gate1"], parts["up1"]]))


def test_parts_of_several_dtypes_become_one_that_holds_all(tmp_path):
    parts = {"a": torch.randn(2, 3), "b": torch.randn(2, 3).bfloat16(), "i": torch.tensor(3), "s": torch.tensor(0.5)}
    entries = (
        Entry(("a", "b"), ("rows",), (Fuse((2, 2)),)),
        Entry(("a", "b"), ("columns",), (Fuse((3, 3), dim=1), Transpose())),
        Entry(("b", "a"), ("x", "y"), (Transpose(),)),
        Entry(("i", "s"), ("z",), (Stack(2),)),
    )
    made = WeightMap(entries).apply(parts)
    WeightMap(entries).write(MemoryReader(parts), tmp_path / "out.safetensors")
    written = load_file(tmp_path / "out.safetensors")
    assert all(torch.equal(written[name], tensor) for name, tensor in made.items())
    assert {name: tensor.dtype for name, tensor in written.items()} == {name: t.dtype for name, t in made.items()}
    assert [made[name].dtype for name in ("rows", "x", "y")] == [torch.float32, torch.bfloat16, torch.float32]


def test_writing_imports_no_symbolic_mathematics(tmp_path, state):
    save_file(state, tmp_path / "in.safetensors")
    MAP.save(tmp_path / "map.json")
    program = """
import sys
from pathlib import Path
from lit_wsl.state.reader import open_state
from lit_wsl.state.remap import WeightMap
recipes = WeightMap.load("map.json")
recipes.write(open_state("in.safetensors"), Path("out.safetensors"))
recipes.inverse().write(open_state("out.safetensors"), Path("back.safetensors"))
assert "sympy" not in sys.modules and "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], cwd=tmp_path, check=True)


def test_many_sources_make_a_short_message():
    experts = tuple(f"e{number}" for number in range(64))
    entry = Entry(experts, ("stacked",), (Stack(64),))
    state = {name: torch.zeros(2) for name in experts} | {"e63": torch.zeros(3)}
    with pytest.raises(CheckpointError) as refused:
        WeightMap((entry,)).apply(state)
    assert str(refused.value) == (
        "The weight map cannot make stacked from e0 (2,), e1 (2,), e2 (2,), e3 (2,) and 60 more "
        "(stack needs 64 equal tensors of at least 0 dimensions, got 63 × (2,), 1 × (3,)); "
        "map this source anew."
    )


def test_as_many_targets_as_the_operations_make(tmp_path, state):
    recipes = WeightMap((Entry(("fused",), ("gate", "up", "more"), (Split((8, 8)),)),))
    with pytest.raises(CheckpointError, match="cannot make gate, up, more from fused"):
        recipes.apply(state)
    with pytest.raises(CheckpointError, match="cannot make gate, up, more from fused"):
        recipes.write(MemoryReader(state), tmp_path / "out.safetensors")


def test_a_source_that_does_not_fit(tmp_path, state):
    with pytest.raises(CheckpointError, match=r"needs 'q', which the source lacks"):
        MAP.apply({name: tensor for name, tensor in state.items() if name != "q"})
    wrong = state | {"q": torch.randn(7, 4)}
    with pytest.raises(CheckpointError, match=r"cannot make x\.qkv from q \(7, 4\)"):
        MAP.apply(wrong)
    with pytest.raises(CheckpointError, match=r"cannot make x\.qkv"):
        MAP.write(MemoryReader(wrong), tmp_path / "out.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_source_read_twice_is_made_once_on_the_way_back():
    tied = copies([("wte", "embed"), ("wte", "head"), ("b", "c")])
    assert tied.inverse() == copies([("embed", "wte"), ("c", "b")])
    with pytest.raises(ConfigError, match="reads 'q' in two ways"):
        WeightMap((Entry(("q",), ("a",)), Entry(("q", "k"), ("b",), (Fuse((2, 2)),)))).inverse()


def test_a_target_made_twice_is_refused():
    with pytest.raises(ConfigError, match="make 'c'"):
        copies([("a", "c"), ("b", "c")])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("nonsense", "no weight map"),
        ({"version": 9, "entries": []}, "version 9"),
        ({"version": 1, "entries": [{"sources": ["a"]}]}, "no weight map"),
        (
            {"version": 1, "entries": [{"sources": ["a"], "targets": ["b"], "operations": [{"name": "transposed"}]}]},
            "Did you mean 'transpose'",
        ),
        (
            {"version": 1, "entries": [{"sources": [], "targets": [], "operations": [{"name": "stack", "cuont": 1}]}]},
            "Did you mean 'count'",
        ),
    ],
)
def test_a_damaged_file(tmp_path, content, message):
    path = tmp_path / "map.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(CheckpointError, match=message):
        WeightMap.load(path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        WeightMap.load(tmp_path / "other.json")
