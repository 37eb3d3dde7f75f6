"""Whatever holds weights is read as its own library reads it."""

import contextlib
import json
import pickle
import struct

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from lit_wsl.errors import CheckpointError
from lit_wsl.state import open_state
from lit_wsl.state.dtypes import SAFETENSORS_DTYPES, is_mergeable

DTYPES = list(SAFETENSORS_DTYPES.values())


def sample(shape, dtype):
    """A tensor of random bytes that are valid in every dtype."""
    size = torch.empty(shape, dtype=dtype).nbytes
    raw = torch.randint(0, 2 if dtype == torch.bool else 60, (size,), dtype=torch.uint8)
    return raw.view(dtype).view(shape) if size else torch.empty(shape, dtype=dtype)


def same(actual, expected):
    """Equal dtype, shape and bytes."""
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    one, other = (t.contiguous().reshape(-1).view(torch.uint8) for t in (actual, expected))
    assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (0,), (2, 0, 3), (2, 2, 2, 2)], ids=str)
def test_round_trip_with_safetensors(tmp_path, dtype, shape):
    state = {"x": sample(shape, dtype), "y.z": sample((3,), torch.uint8), "w": sample(shape, dtype)}
    save_file(state, tmp_path / "s.safetensors")
    reader = open_state(tmp_path / "s.safetensors")
    assert sorted(reader.keys()) == sorted(state)
    for name, tensor in state.items():
        info = reader.info(name)
        assert (info.shape, info.dtype, info.nbytes) == (tuple(tensor.shape), tensor.dtype, tensor.nbytes)
        same(reader.read(name), tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int16], ids=str)
@pytest.mark.parametrize("padding", range(8))
def test_data_that_is_not_aligned(tmp_path, dtype, padding):
    """Other writers neither pad their headers nor sort by item size."""
    odd, x = sample((3,), torch.uint8), sample((5, 2), dtype)
    name = {value: key for key, value in SAFETENSORS_DTYPES.items()}[dtype]
    header = {
        "odd": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
        "x": {"dtype": name, "shape": [5, 2], "data_offsets": [3, 3 + x.nbytes]},
    }
    text = json.dumps(header).encode() + b" " * padding
    data = odd.numpy().tobytes() + x.reshape(-1).view(torch.uint8).numpy().tobytes()
    (tmp_path / "s.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    reader = open_state(tmp_path / "s.safetensors")
    same(reader.read("odd"), odd)
    same(reader.read("x"), x)
    same(reader.read("x", (1, 4)), x[1:4])


def test_rows(tmp_path):
    state = {"x": torch.randn(7, 3)}
    save_file(state, tmp_path / "s.safetensors")
    torch.save(state, tmp_path / "s.pt")
    for source in (tmp_path / "s.safetensors", tmp_path / "s.pt", state):
        reader = open_state(source)
        for rows in ((0, 7), (2, 5), (6, 7), (3, 3)):
            assert torch.equal(reader.read("x", rows), state["x"][rows[0] : rows[1]])


def test_writing_to_what_was_read_does_not_reach_the_file(tmp_path):
    save_file({"x": torch.zeros(1000)}, tmp_path / "s.safetensors")
    open_state(tmp_path / "s.safetensors").read("x").fill_(1.0)
    assert not open_state(tmp_path / "s.safetensors").read("x").any()


def test_metadata_is_no_tensor(tmp_path):
    save_file({"x": torch.ones(1)}, tmp_path / "s.safetensors", metadata={"format": "pt", "a": "b"})
    assert open_state(tmp_path / "s.safetensors").keys() == ["x"]


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_sharded_directory_and_its_index(tmp_path, suffix):
    state = {f"t{i}": torch.randn(i + 1) for i in range(5)}
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    weight_map = {}
    for number, names in enumerate((["t3", "t0"], ["t1", "t2", "t4"])):
        file = f"{stem}-0000{number + 1}-of-00002.{suffix}"
        part = {name: state[name] for name in names}
        save_file(part, tmp_path / file) if suffix == "safetensors" else torch.save(part, tmp_path / file)
        weight_map.update(dict.fromkeys(names, file))
    index = tmp_path / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    for source in (tmp_path, index, str(index)):
        reader = open_state(source)
        assert sorted(reader.keys()) == sorted(state)
        assert len(reader.files()) == 2
        for name, tensor in state.items():
            assert name in reader
            same(reader.read(name), tensor)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_tensor_in_two_shards_is_refused(tmp_path, suffix):
    save = save_file if suffix == "safetensors" else torch.save
    for stem in "ab":
        save({"x": torch.ones(1), stem: torch.ones(1)}, tmp_path / f"{stem}.{suffix}")
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    index = {"weight_map": {"x": f"a.{suffix}", "b": f"b.{suffix}"}}
    (tmp_path / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=f"'x' is in a.{suffix} and in b.{suffix}"):
        open_state(tmp_path)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt"])
@pytest.mark.parametrize("container", [None, "state_dict", "model", "model_state_dict", "module"])
def test_torch_files(tmp_path, zipped, suffix, container):
    """Lightning, nanoGPT, DeepSpeed and plain state dicts; wrappers of torch.compile and FSDP fall away."""
    state = {
        "_orig_mod.a.weight": torch.randn(3, 4),
        "_fsdp_wrapped_module.a._checkpoint_wrapped_module.b": torch.ones(2),
    }
    content = state if container is None else {container: state, "epoch": 2, "optimizer_states": [{"x": torch.ones(1)}]}
    torch.save(content, tmp_path / f"s{suffix}", _use_new_zipfile_serialization=zipped)
    for source in (tmp_path / f"s{suffix}", tmp_path):
        reader = open_state(source)
        assert reader.keys() == ["a.weight", "a.b"]
        same(reader.read("a.weight"), state["_orig_mod.a.weight"])


def test_a_real_lightning_checkpoint(tmp_path):
    from lightning.pytorch import LightningModule, Trainer

    class Tiny(LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 2)

        def training_step(self, batch, _):
            return self.layer(batch).sum()

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters())

    module = Tiny()
    trainer = Trainer(
        max_steps=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, torch.utils.data.DataLoader(torch.randn(4, 2)))
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    reader = open_state(tmp_path / "x.ckpt")
    assert reader.keys() == ["layer.weight", "layer.bias"]
    same(reader.read("layer.weight"), module.layer.weight.detach())


def test_the_usual_file_wins_in_a_directory_and_doubt_is_an_error(tmp_path):
    save_file({"x": torch.ones(1)}, tmp_path / "model.safetensors")
    torch.save({"y": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    assert open_state(tmp_path).keys() == ["x"]
    (tmp_path / "model.safetensors").rename(tmp_path / "one.safetensors")
    (tmp_path / "pytorch_model.bin").rename(tmp_path / "two.bin")
    with pytest.raises(CheckpointError, match="2 weight files but no index"):
        open_state(tmp_path)
    (tmp_path / "two.bin").unlink()
    assert open_state(tmp_path).keys() == ["x"]


def test_unknown_names_get_the_nearest(tmp_path):
    save_file({"layer.weight": torch.ones(1)}, tmp_path / "s.safetensors")
    for reader in (open_state(tmp_path), open_state({"layer.weight": torch.ones(1)})):
        for ask in (reader.read, reader.info):
            with pytest.raises(CheckpointError, match="Did you mean 'layer.weight'"):
                ask("layer.wieght")
        assert "layer.wieght" not in reader


@pytest.mark.parametrize("name", ["gone.safetensors", "notes.txt"])
def test_what_is_no_checkpoint(tmp_path, name):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(CheckpointError, match=name):
        open_state(tmp_path / name)


def test_a_file_that_shrinks_after_it_was_opened(tmp_path):
    path = tmp_path / "s.safetensors"
    save_file({"x": torch.ones(1000)}, path)
    reader = open_state(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match="became shorter"):
        reader.read("x")


SEEDS = {}


def seed_files():
    """Bytes of small files of each container, made once."""
    if not SEEDS:
        import io

        state = {"a": torch.ones(3), "b": torch.ones(2, 2)}
        from safetensors.torch import save

        SEEDS["x.safetensors"] = save(state)
        for name, zipped in (("x.pt", True), ("y.pt", False)):
            buffer = io.BytesIO()
            torch.save(state, buffer, _use_new_zipfile_serialization=zipped)
            SEEDS[name] = buffer.getvalue()
        SEEDS["z.pt"] = pickle.dumps({"a": 1})
    return SEEDS


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["x.safetensors", "x.safetensors", "x.pt", "y.pt", "z.pt"]),
    position=st.integers(0, 10_000),
    value=st.integers(0, 255),
    cut=st.one_of(st.none(), st.integers(0, 2000)),
)
def test_a_garbled_file_is_read_or_refused_in_words(tmp_path, name, position, value, cut):
    data = bytearray(seed_files()[name])
    data[position % len(data)] = value
    path = tmp_path / name
    path.write_bytes(bytes(data[:cut] if cut is not None else data))
    with contextlib.suppress(CheckpointError):
        reader = open_state(path)
        for key in reader.keys():
            reader.read(key).clone()


def test_torch_is_not_quoted_where_it_advises_to_run_the_code(tmp_path):
    (tmp_path / "h.pt").write_bytes(b"\x89HDF" * 20)
    with pytest.raises(CheckpointError, match=r"h\.pt cannot be read \(it begins with the bytes 89 48 44 46"):
        open_state(tmp_path / "h.pt")
    torch.save({"w": torch.ones(1), "when": torch.nn.ReLU()}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=r"would run code \(`torch\.nn\.modules\.activation\.ReLU`\)"):
        open_state(tmp_path / "m.pt")


def test_what_may_be_merged():
    assert [is_mergeable(d) for d in (torch.float16, torch.bfloat16, torch.float64)] == [True] * 3
    assert not any(is_mergeable(d) for d in (torch.float8_e4m3fn, torch.int64, torch.bool, torch.complex64))


@pytest.mark.parametrize(("times", "fails"), [(1, False), (99, True)])
def test_a_file_that_is_replaced_while_it_is_read(tmp_path, monkeypatch, times, fails):
    path, load, replaced = tmp_path / "a.pt", torch.load, []
    torch.save({"w": torch.zeros(3)}, path)

    def replacing(*arguments, **options):
        content = load(*arguments, **options)
        if len(replaced) < times:
            replaced.append(1)
            torch.save({"w": torch.full((3,), float(len(replaced)))}, tmp_path / "b.pt")
            (tmp_path / "b.pt").replace(path)
        return content

    monkeypatch.setattr(torch, "load", replacing)
    if fails:
        with pytest.raises(CheckpointError, match="being replaced all the time"):
            open_state(path)
    else:
        assert open_state(path).read("w").tolist() == [1, 1, 1]
