"""The main job on real weights and data, cut short."""

import json
import logging

import pytest
import torch
import yaml
from transformers import AutoModel

from lit_wsl.cli.demo import Demo, DemoSettings
from lit_wsl.cli.finished import FinishedParts
from lit_wsl.cli.main import run
from lit_wsl.errors import ConfigError
from lit_wsl.merging import merge_state_dict
from lit_wsl.state import open_state


@pytest.mark.real
def test_demo_measures_writes_and_takes_up_finished_parts(tmp_path, monkeypatch, caplog):
    grid = {"uniform average": ("uniform_delta", [{}]), "TIES": ("ties", [{"lambda": 0.5}, {"lambda": 1.0}])}
    monkeypatch.setattr("lit_wsl.cli.demo.CANDIDATES", grid)
    settings = DemoSettings(tmp_path / "demo", ["tweets", "intent"], threads=1, limit_train=64)
    scores = Demo(settings).run()

    results = json.loads((tmp_path / "demo/results.json").read_text())
    assert list(results["rows"]) == ["base", "individual", "uniform average", "TIES"]
    assert results["rows"]["TIES"]["mean"] == pytest.approx(scores.mean("TIES"))
    assert results["test_rows"] == {"tweets": 500, "intent": 500}
    assert results["rows"]["base"]["mean"] > 0.5
    assert "<table>" in (tmp_path / "demo/report.html").read_text()
    AutoModel.from_pretrained(tmp_path / "demo/merged")

    best = results["best_on_validation"].lower().replace(" ", "_")
    config = yaml.safe_load((tmp_path / f"demo/configs/merge_{best}.yaml").read_text())
    again = merge_state_dict(**{**config, "output": None})
    written = open_state(tmp_path / "demo/merged")
    assert all(torch.equal(written.read(name), again[name]) for name in written.keys())

    monkeypatch.setattr("lit_wsl.cli.demo._fit", lambda *_: pytest.fail("a finished adapter was trained again"))
    monkeypatch.setattr(
        "lit_wsl.evaluation.EncoderEvaluator.evaluate", lambda *_: pytest.fail("a finished score was measured again")
    )
    with caplog.at_level(logging.INFO, logger="lit_wsl"):
        assert Demo(settings).run().rows == scores.rows
    assert "is finished" in caplog.text


def test_unknown_task_is_one_line(tmp_path, capsys):
    assert run(["demo", "--tasks", "twets", "--output", str(tmp_path / "x")]) == 1
    assert "Did you mean 'tweets'?" in capsys.readouterr().err


def test_finished_parts_survive_damage_and_restarts(tmp_path):
    FinishedParts(tmp_path / "parts.json").put("a", {"x": 1})
    assert FinishedParts(tmp_path / "parts.json").get("a") == {"x": 1}
    (tmp_path / "parts.json").write_text('{"a": ')
    assert FinishedParts(tmp_path / "parts.json").get("a") is None


def test_output_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file"):
        FinishedParts(tmp_path / "file" / "parts.json")
