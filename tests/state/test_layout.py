"""Where the tensors of a checkpoint lie, told from headers and indices."""

import pytest

from lit_wsl.errors import CheckpointError
from lit_wsl.state.layout import Layout, index_of, named_files
from tests.state.sharded import PARTS, STATE, equal, save_shards, save_single


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("by_index", [False, True])
def test_each_tensor_has_the_shard_that_the_index_names(tmp_path, suffix, by_index):
    index = save_shards(tmp_path, suffix)
    layout = Layout.of(index if by_index else tmp_path)
    assert [sorted(names) for names in layout.shards.values()] == [sorted(part) for part in PARTS]
    assert set(layout.shards) == named_files(index)
    assert (layout.index, layout.entry, layout.folder, layout.is_directory) == (index, index, tmp_path, True)
    assert layout.is_torch is (suffix == "bin")
    metadata = [layout.metadata(file) for file in sorted(layout.shards)]
    assert metadata == [{"format": "pt", "part": str(n)} if suffix == "safetensors" else {} for n in (1, 2, 3)]


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "mine.pt"])
def test_one_file_holds_everything(tmp_path, name):
    file = save_single(tmp_path, name)
    for opened in (file, tmp_path):
        layout = Layout.of(opened)
        assert {path: sorted(names) for path, names in layout.shards.items()} == {file: sorted(STATE)}
        assert (layout.index, layout.entry, layout.is_directory) == (None, file, opened == tmp_path)
        assert layout.is_torch is (file.suffix != ".safetensors")
        assert list(layout.placed(tmp_path / "out").values()) == [
            tmp_path / "out" / f"{name.rpartition('.')[0].replace('pytorch_model', 'model')}.safetensors"
        ]


def test_names_under_a_wrapper_find_their_torch_shard(tmp_path):
    """Shards and index of a compiled model name `_orig_mod.a.bias`, which is read as `a.bias`."""
    index = save_shards(tmp_path, "bin", prefix="_orig_mod.")
    layout = Layout.of(index)
    assert [sorted(names) for names in layout.shards.values()] == [sorted(part) for part in PARTS]
    assert equal({name: layout.reader.read(name) for name in layout.reader.keys()}, STATE)


def test_shards_that_would_become_one_file_are_refused(tmp_path):
    save_single(tmp_path, "model.safetensors")
    layout = Layout.of(tmp_path / "model.safetensors")
    layout.shards[tmp_path / "model.bin"] = []
    with pytest.raises(CheckpointError, match="differ only in their end"):
        layout.placed(tmp_path / "out")


def test_a_replaced_file_is_another_and_a_lost_one_is_named(tmp_path):
    layout = Layout.of(save_single(tmp_path))
    before = layout.identities()
    assert layout.identities() == before
    save_single(tmp_path / "new").replace(layout.entry)
    assert layout.identities() != before
    layout.entry.unlink()
    with pytest.raises(CheckpointError, match=r"model.safetensors is gone \(No such file"):
        layout.identities()


def test_the_index_of_a_path(tmp_path):
    assert index_of(tmp_path) is None
    assert index_of(tmp_path / "x.safetensors") is None
    index = save_shards(tmp_path)
    assert index_of(tmp_path) == index_of(index) == index
