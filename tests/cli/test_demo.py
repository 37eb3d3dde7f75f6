"""The main job on real weights and data, cut short."""

import hashlib
import json
import logging
from pathlib import Path

import pytest
from transformers import AutoModel

from lit_wsl.cli.demo import Demo, DemoSettings
from lit_wsl.cli.finished import FinishedParts
from lit_wsl.cli.main import run
from lit_wsl.errors import ConfigError
from lit_wsl.evaluation import EncoderEvaluator
from lit_wsl.runs import RunLayout, list_runs
from lit_wsl.runs.repeating import changed_inputs

CANDIDATES = {
    "uniform average": ("uniform_delta", {}, {}),
    "task arithmetic": ("task_arithmetic", {}, {"scale": [0.4, 0.6, 1.0]}),
}
TASKS = ["intent", "tweets", "sentiment"]


@pytest.fixture(scope="module")
def short():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lit_wsl.cli.demo.CANDIDATES", CANDIDATES)
        yield patch


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return DemoSettings(tmp_path_factory.mktemp("demo") / "demo", TASKS, threads=1, limit_train=256)


@pytest.fixture(scope="module")
def scores(short, settings):
    """A demo of few rows and points, interrupted once in its second search."""
    asked = EncoderEvaluator.evaluate
    times = iter(range(100))

    def stop(self, state, task, split, subset=None):
        if next(times) == 13:
            raise KeyboardInterrupt
        return asked(self, state, task, split, subset)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EncoderEvaluator, "evaluate", stop)
        with pytest.raises(KeyboardInterrupt):
            Demo(settings).run()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lit_wsl.cli.demo_adapters._fit", lambda *_: pytest.fail("an adapter was trained again"))
        return Demo(settings).run()


@pytest.fixture(scope="module")
def results(scores, settings):
    return json.loads((settings.output / "results.json").read_text())


@pytest.mark.real
def test_demo_measures_and_writes(scores, settings, results):
    assert list(results["rows"]) == ["base", "individual", *CANDIDATES]
    assert results["rows"]["task arithmetic"]["mean"] == pytest.approx(scores.mean("task arithmetic"))
    assert results["test_rows"] == dict.fromkeys(TASKS, 500)
    assert 0.5 < results["rows"]["base"]["mean"] < results["rows"]["individual"]["mean"]
    assert "<table>" in (settings.output / "report.html").read_text()
    AutoModel.from_pretrained(settings.output / "model")


@pytest.mark.real
def test_demo_chooses_what_its_sweeps_found_on_validation_rows(results):
    for chosen in results["chosen"].values():
        sweep = json.loads(Path(chosen["sweep"]).read_text())
        assert sweep["split"] == "validation"
        assert sweep["status"] == "complete"
        best = max(sweep["runs"], key=lambda one: (one["score"], one["score_details"]["mean_interference_delta"]))
        assert chosen["validation"]["lowest"] == best["score"]
        assert {**chosen["params"], **best["params"]} == chosen["params"]
    points = json.loads(Path(results["chosen"]["task arithmetic"]["sweep"]).read_text())["runs"]
    assert [one["params"]["scale"] for one in points] == [0.4, 0.6, 1.0]  # once each, in spite of the interruption
    found = {row: tuple(chosen["validation"].values()) for row, chosen in results["chosen"].items()}
    assert results["best_on_validation"] == max(found, key=found.__getitem__)


@pytest.mark.real
def test_a_sweep_on_validation_beats_the_default_on_test(results):
    """Three real tasks: a scale found on validation rows keeps more of each gain than the default scale, 1."""
    chosen = results["chosen"]["task arithmetic"]
    assert chosen["params"]["scale"] < 1.0
    assert chosen["default"]["params"] == {}
    assert chosen["mean"] > chosen["default"]["mean"]
    assert results["rows"]["task arithmetic"]["mean"] == pytest.approx(chosen["mean"])
    assert _lowest(results, chosen["scores"]) > _lowest(results, chosen["default"]["scores"])


def _lowest(results, scores):
    base, individual = (results["rows"][row]["scores"] for row in ("base", "individual"))
    return min((scores[task] - base[task]) / (individual[task] - base[task]) for task in TASKS)


@pytest.mark.real
def test_demo_leaves_runs_that_can_be_repeated(results, settings, tmp_path):
    runs = list_runs(RunLayout(settings.output))
    measured = {one["run"] for row in results["chosen"].values() for one in (row, row["default"])}
    assert {str(one.path) for one in runs} == measured
    assert len(measured) == 3  # the average has no parameters, so its defaults are no run of their own
    for one in runs:
        assert set(one.results["test"]) == set(TASKS)
        assert set(changed_inputs(one).values()) == {"same"}
    best = Path(results["chosen"][results["best_on_validation"]]["run"])
    assert run(["merge", "--config", str(best / "config.yaml"), "--output", str(tmp_path / "again")]) == 0
    assert _sha256(tmp_path / "again") == _sha256(settings.output / "model")


def _sha256(directory):
    return hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.real
def test_demo_takes_up_finished_parts(scores, settings, results, monkeypatch, caplog):
    monkeypatch.setattr(
        "lit_wsl.cli.demo_adapters._fit", lambda *_: pytest.fail("a finished adapter was trained again")
    )
    monkeypatch.setattr(EncoderEvaluator, "evaluate", lambda *_: pytest.fail("a finished score was measured again"))
    with caplog.at_level(logging.INFO, logger="lit_wsl"):
        assert Demo(settings).run().rows == scores.rows
    assert "is finished" in caplog.text
    again = json.loads((settings.output / "results.json").read_text())
    assert {**again, "seconds": 0} == {**results, "seconds": 0}


def test_wrong_usage_is_two(capsys):
    assert run(["demo", "--threads", "-1"]) == 2
    assert capsys.readouterr().err.startswith("lit-wsl demo: `threads >= 0`")


def test_unknown_task_is_one_line(tmp_path, capsys):
    assert run(["demo", "--tasks", "twets", "--output", str(tmp_path / "x")]) == 1
    assert "Did you mean 'tweets'?" in capsys.readouterr().err


def test_finished_parts_survive_damage_and_restarts(tmp_path):
    FinishedParts(tmp_path / "parts.json").put("a", {"x": 1})
    assert FinishedParts(tmp_path / "parts.json").get("a") == {"x": 1}
    for damaged in ('{"a": ', "[1]"):
        (tmp_path / "parts.json").write_text(damaged)
        assert FinishedParts(tmp_path / "parts.json").get("a") is None


def test_output_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file"):
        FinishedParts(tmp_path / "file" / "parts.json")
