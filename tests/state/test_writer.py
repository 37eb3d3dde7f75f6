"""What we write, others read; what is wrong is refused before it is published."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from lit_wsl.errors import CheckpointError
from lit_wsl.state import ShardedWriter, TensorInfo, open_state, published_directory
from lit_wsl.state.dtypes import SAFETENSORS_DTYPES
from lit_wsl.state.writer import write_tensors
from tests.state.test_reader import same, sample


def plan(state):
    return {name: TensorInfo(tuple(t.shape), t.dtype) for name, t in state.items()}


def write_all(directory, state, **options):
    with ShardedWriter(directory, plan(state), **options) as writer:
        for name, tensor in state.items():
            writer.write(name, tensor)
            writer.finish(name)
    return writer


EVERY = {str(d): d for d in SAFETENSORS_DTYPES.values()}


@pytest.mark.parametrize("shape", [(), (3, 5), (0, 2)], ids=str)
def test_safetensors_reads_what_we_write(tmp_path, shape):
    state = {name: sample(shape, dtype) for name, dtype in EVERY.items()}
    write_all(tmp_path, state)
    loaded = load_file(tmp_path / "model.safetensors")
    assert loaded.keys() == state.keys()
    for name, tensor in state.items():
        same(loaded[name], tensor)
        same(open_state(tmp_path).read(name), tensor)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_every_tensor_is_aligned(tmp_path):
    state = {"odd": sample((3,), torch.uint8), "x": sample((3,), torch.float64), "h": sample((3,), torch.bfloat16)}
    write_all(tmp_path, state)
    raw = (tmp_path / "model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    for name, tensor in state.items():
        assert (8 + length + header[name]["data_offsets"][0]) % tensor.dtype.itemsize == 0


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=12),
    limit=st.integers(1, 300),
    order=st.randoms(use_true_random=False),
    step=st.integers(1, 7),
)
def test_pieces_in_any_order_within_the_shard_limit(tmp_path_factory, sizes, limit, order, step):
    directory = tmp_path_factory.mktemp("w")
    state = {f"t{i}": torch.randn(n) for i, n in enumerate(sizes)}
    writer = ShardedWriter(directory, plan(state), shard_bytes=limit)
    pieces = [(name, start) for name, t in state.items() for start in range(0, t.numel(), step)]
    order.shuffle(pieces)
    for name, start in pieces:
        writer.write(name, state[name][start : start + step], start)
    for name in state:
        writer.finish(name)
    writer.close()
    reader = open_state(directory)
    assert sorted(reader.keys()) == sorted(state)
    for name, tensor in state.items():
        same(reader.read(name), tensor)
    for file in reader.files():
        held = load_file(file)
        assert len(held) == 1 or sum(t.nbytes for t in held.values()) <= limit
    names = sorted(p.name for p in directory.iterdir())
    count = len(reader.files())
    if count > 1:
        index = json.loads((directory / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(t.nbytes for t in state.values())
        assert set(index["weight_map"]) == set(state)
        assert names[0] == f"model-00001-of-{count:05d}.safetensors"
    else:
        assert names == ["model.safetensors"]


def test_from_pretrained_reads_our_shards(tmp_path):
    from transformers import AutoModel

    from tests.merging.build import save_bert

    base = save_bert(tmp_path / "base")
    reader = open_state(base)
    state = {name: reader.read(name) for name in reader.keys()}
    out = tmp_path / "out"
    out.mkdir()
    write_all(out, state, shard_bytes=5000)
    (out / "config.json").write_text((base / "config.json").read_text())
    assert len(open_state(out).files()) > 2
    loaded = AutoModel.from_pretrained(out).state_dict()
    for name, tensor in state.items():
        same(loaded[name], tensor)


@pytest.mark.parametrize(
    ("tensor", "start"),
    [(torch.ones(4, dtype=torch.float64), 0), (torch.ones(5), 0), (torch.ones(3), 2), (torch.ones(1), 4)],
    ids=["dtype", "too long", "over the end", "behind the end"],
)
def test_a_piece_that_does_not_fit_is_refused(tmp_path, tensor, start):
    with ShardedWriter(tmp_path, {"x": TensorInfo((2, 2), torch.float32)}) as writer:
        with pytest.raises(CheckpointError, match=r"'x' was planned as torch.float32 \(2, 2\)"):
            writer.write("x", tensor, start)
        writer.finish("x")


def test_a_forgotten_tensor_is_named(tmp_path):
    writer = ShardedWriter(tmp_path, plan({"a": torch.ones(1), "b": torch.ones(1)}))
    writer.finish("a")
    with pytest.raises(CheckpointError, match="1 planned tensors were never written, first 'b'"):
        writer.close()
    writer.abandon()


def test_a_dtype_that_cannot_be_stored_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="'q'.*no dtype torch.complex128"):
        ShardedWriter(tmp_path, {"q": TensorInfo((1,), torch.complex128)})


def test_the_journal_brings_back_what_was_finished(tmp_path):
    state = {f"t{i}": torch.randn(5) for i in range(4)}
    first = ShardedWriter(tmp_path, plan(state), shard_bytes=40)
    for name in ("t2", "t0"):
        first.write(name, state[name])
        first.finish(name)
    first.write("t1", torch.zeros(5))
    first.abandon()
    second = ShardedWriter(tmp_path, plan(state), shard_bytes=40)
    assert second.finished == {"t0", "t2"}
    for name in ("t1", "t3"):
        second.write(name, state[name])
        second.finish(name)
    second.close()
    for name, tensor in state.items():
        same(open_state(tmp_path).read(name), tensor)
    assert not (tmp_path / ".journal").exists()


@pytest.mark.parametrize("torn", ['"t1', '"t', "{", "\udcff"])
def test_a_torn_last_line_of_the_journal_counts_for_nothing(tmp_path, torn):
    """... neither at the next start, nor at the one after it."""
    state = {f"t{i}": torch.randn(5) for i in range(3)}
    first = ShardedWriter(tmp_path, plan(state))
    first.finish("t0")
    first.abandon()
    with (tmp_path / ".journal").open("ab") as journal:
        journal.write(torn.encode(errors="surrogateescape"))
    for finished in ({"t0"}, {"t0", "t1"}, {"t0", "t1", "t2"}):
        writer = ShardedWriter(tmp_path, plan(state))
        assert writer.finished == finished
        writer.finish(f"t{len(finished)}") if len(finished) < 3 else writer.close()
        writer.abandon()


@pytest.mark.parametrize(
    "line", ["{}", "[]", "7", '["t1"]', '["t1", null, 1]', '[["t1"], null]', '["t1", "x"]', "[" * 99_999]
)
def test_a_damaged_line_of_the_journal_counts_for_nothing(tmp_path, line):
    state = {f"t{i}": torch.randn(5) for i in range(2)}
    first = ShardedWriter(tmp_path, plan(state))
    first.finish("t0")
    first.abandon()
    with (tmp_path / ".journal").open("a") as journal:
        journal.write(f'{line}\n["unknown", null]\n')
    second = ShardedWriter(tmp_path, plan(state))
    assert second.finished == {"t0"}
    second.abandon()


@pytest.mark.parametrize("size", [None, 0, 9, 10_000])
def test_what_was_finished_in_a_lost_or_cut_file_is_written_again(tmp_path, size):
    state = {f"t{i}": torch.randn(5) for i in range(2)}
    first = ShardedWriter(tmp_path, plan(state), shard_bytes=20)
    for name, tensor in state.items():
        first.write(name, tensor)
        first.finish(name)
    first.abandon()
    lost = tmp_path / first.file_names()[0]
    lost.unlink()
    if size is not None:
        lost.write_bytes(bytes(size))
    second = ShardedWriter(tmp_path, plan(state), shard_bytes=20)
    assert second.finished == {"t1"}
    second.abandon()


def test_nothing_is_written_through_a_link(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.safetensors").symlink_to(elsewhere)
    with pytest.raises(CheckpointError, match="cannot be written"):
        ShardedWriter(tmp_path / "out", plan({"a": torch.ones(3)}))
    assert elsewhere.read_text() == "mine"


def test_a_journal_of_another_plan_is_ignored(tmp_path):
    first = ShardedWriter(tmp_path, plan({"a": torch.ones(3)}))
    first.finish("a")
    first.abandon()
    second = ShardedWriter(tmp_path, plan({"a": torch.ones(4)}))
    assert second.finished == set()
    second.abandon()


def interrupt_halfway(target):
    with published_directory(target, fingerprint="a") as scratch:
        (scratch / "x").write_text("half")
        raise KeyboardInterrupt


def save_mine(target):
    target.mkdir()
    (target / "mine").write_text("x")


def test_an_error_publishes_nothing_and_a_ctrl_c_keeps_the_work(tmp_path):
    target = tmp_path / "out"
    with pytest.raises(RuntimeError), published_directory(target):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyboardInterrupt):
        interrupt_halfway(target)
    assert not target.exists()
    with published_directory(target, fingerprint="a") as scratch:
        assert (scratch / "x").read_text() == "half"
    assert sorted(p.name for p in target.iterdir()) == [".lit_wsl.json", "x"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_rival_is_refused_and_does_not_take_the_lock_away(tmp_path):
    target = tmp_path / "out"
    with published_directory(target):
        for _ in range(2):
            with pytest.raises(CheckpointError, match="Another process"), published_directory(target):
                pytest.fail("two writers at once")
    assert target.is_dir()


def test_a_target_that_appears_meanwhile_is_not_replaced(tmp_path):
    target = tmp_path / "out"
    with pytest.raises(CheckpointError, match="not empty"), published_directory(target):
        save_mine(target)
    assert [p.name for p in target.iterdir()] == ["mine"]


def test_a_kill_just_before_the_rename_does_not_block_the_next_run(tmp_path, monkeypatch):
    """The scratch directory is complete and already has the mark of a published one."""
    monkeypatch.setattr("lit_wsl.state.publish.Path.rename", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_x(tmp_path / "out")
    monkeypatch.undo()
    assert (tmp_path / "out.partial" / "x").exists()
    write_x(tmp_path / "out")
    assert (tmp_path / "out" / "x").exists()


def interrupt(*_):
    raise KeyboardInterrupt


def write_x(target):
    with published_directory(target, fingerprint="a") as scratch:
        (scratch / "x").write_text("whole")


@pytest.mark.parametrize("suffix", [".partial", ".replaced"])
def test_a_directory_of_somebody_else_beside_the_target_is_left_alone(tmp_path, suffix):
    mine = tmp_path / f"out{suffix}" / "thesis.txt"
    mine.parent.mkdir()
    mine.write_text("years of work")
    if suffix == ".partial":
        with pytest.raises(CheckpointError, match="not made by lit-wsl"):
            write_x(tmp_path / "out")
    else:
        write_x(tmp_path / "out")
    assert mine.read_text() == "years of work"


def test_a_single_entry_may_have_any_stride(tmp_path):
    odd = torch.arange(48.0).bfloat16().view(4, 12)[:1, :1].T
    write_tensors(tmp_path / "odd.safetensors", {"odd": odd})
    assert torch.equal(load_file(tmp_path / "odd.safetensors")["odd"], odd)
