"""Weight maps: every operation loses nothing, in memory and from file to file."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lit_wsl.errors import CheckpointError, ConfigError
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


def test_file_to_file(tmp_path, state):
    save_file(state, tmp_path / "in.safetensors")
    MAP.write(open_state(tmp_path / "in.safetensors"), tmp_path / "new" / "out.safetensors")
    written = load_file(tmp_path / "new" / "out.safetensors")
    made = MAP.apply(state)
    assert set(written) == set(made)
    assert all(torch.equal(written[name], made[name]) for name in made)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out.safetensors"]


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
