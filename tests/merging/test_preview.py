"""What a merge says that it would do is what it does."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lit_wsl.cli.main import run
from lit_wsl.errors import MergeError
from lit_wsl.merging import MergeSpec, merge
from lit_wsl.merging.preview import preview
from lit_wsl.state import open_state


@pytest.fixture
def spec(tmp_path):
    base = {"layers.0.weight": torch.randn(40, 24), "norm": torch.ones(24), "steps": torch.tensor([3])}
    paths = []
    for name in ("base", "one", "two"):
        paths.append(tmp_path / f"{name}.safetensors")
        extra = {"layers.0.only": torch.randn(3)} if name == "two" else {}
        save_file({k: v + (name != "base") for k, v in base.items()} | extra, paths[-1])
    return {"base": str(paths[0]), "models": [str(path) for path in paths[1:]], "method": "task_arithmetic"}


@pytest.mark.parametrize("output", [{"dtype": "auto"}, {"dtype": "bfloat16"}, {"output_format": "delta"}])
def test_the_preview_is_what_the_merge_does(tmp_path, spec, output):
    told = preview(MergeSpec(**spec, **output))
    report = merge(**spec, **output, output=tmp_path / "out")
    assert (told.merged, told.copied, told.skipped) == (len(report.merged), len(report.copied), report.skipped)
    assert told.skipped == {"layers.0.only": "not in the base"}
    written = open_state(tmp_path / "out")
    assert told.written == sum(written.info(name).nbytes for name in written.keys())
    assert told.read == sum(Path(path).stat().st_size for path in [spec["base"], *spec["models"]])
    assert told.merged_entries == 40 * 24 + 24


def test_a_dry_run_writes_nothing(capsys, tmp_path, spec):
    argv = ["merge", "--models", *spec["models"], "--base", spec["base"], "--method", "ties", "--dry-run"]
    before = sorted(tmp_path.iterdir())
    assert run([*argv, "--output", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "2 parameters, 984 entries" in shown
    assert "not in the base" in shown
    assert run(argv) == 0  # needs no output
    assert sorted(tmp_path.iterdir()) == before


def test_the_preview_refuses_what_the_merge_refuses(spec):
    with pytest.raises(MergeError, match="cannot be merged from all sources"):
        preview(MergeSpec(**spec, merge_mode="strict"))


def test_the_memory_follows_the_dtype_and_the_workers_that_there_are(spec):
    """So small a merge has one worker, whatever is asked for."""
    alone = preview(MergeSpec(**spec, threads=1)).memory
    assert preview(MergeSpec(**spec, threads=4)).memory == alone
    assert preview(MergeSpec(**spec, threads=1, compute_dtype="float64")).memory == 2 * alone


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"rank": 4, "energy": 0.9}, "`rank` and `energy` changed nothing: the output is of format `model`."),
        ({"output_format": "delta", "rank": 4}, "`rank` changed nothing: the output is of format `delta`."),
        ({"output_format": "delta", "dtype": "bfloat16"}, None),
        ({}, None),
    ],
)
def test_settings_that_change_nothing_are_told(tmp_path, caplog, spec, fields, named):
    merge(**spec, **fields, output=tmp_path / "out")
    told = [record.getMessage() for record in caplog.records if "changed nothing" in record.getMessage()]
    assert told == ([] if named is None else [named])
