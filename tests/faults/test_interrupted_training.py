"""Commands that train, gather, sweep, evaluate and prepare, killed or out of disk: the next try makes the same output.

What a checkpoint and a search hold after a kill is tested where they are: `tests/training/test_checkpoint_io.py`,
`tests/training/test_resume.py`, `tests/sweep/test_resume.py`.
"""

import json
import shutil

import pytest
import yaml

from lit_wsl.cli import trainer  # noqa: F401 - imported once, not in every fork
from tests.evaluation.pair import write_pair
from tests.faults.moments import run_until
from tests.faults.test_interrupted import snapshot
from tests.tiny_bert import write_opinions
from tests.training.test_tasks import toy as toy

QUIET = "--trainer.logger=false --trainer.enable_progress_bar=false --trainer.enable_model_summary=false"
SMALL = f"--trainer.accelerator=cpu --trainer.max_epochs=1 --trainer.limit_train_batches=2 {QUIET}"
MODEL = "--model.model={bert} --model.labels=[negative,positive] --data.task={opinions} --data.batch_size=8"
COMMANDS = {
    "fit": f"fit {MODEL} {SMALL} --trainer.default_root_dir=out --seed_everything=1",
    "gather": f"gather {MODEL} {SMALL} --trainer.enable_checkpointing=false --kind=fisher --batches=1 "
    "--output=out.safetensors --seed_everything=1",
    "merge-sweep": "merge-sweep --config {sweep}",
    "evaluate-merged": "evaluate-merged --config {merge} --save",
    "data prepare": "data prepare toy --cache cache",
}
WHOLE = (".ckpt", ".safetensors", ".jsonl", ".json")
"""Ends of files that are whole whenever they stand under their names."""


@pytest.fixture(scope="module")
def inputs(bert_dir, tmp_path_factory):
    root = tmp_path_factory.mktemp("inputs")
    (root / "pair").mkdir()
    pair = write_pair(bert_dir, root / "pair")
    merge = {"tasks": pair.registry, "base": str(bert_dir), "adapters": pair.adapters, "method": "ties"}
    search = {"search": {"type": "grid", "grid": {"lambda": [0.5, 1.0]}}, "output_dir": "out", "split": "validation"}
    (root / "merge.yaml").write_text(yaml.safe_dump(merge | {"output_format": "adapter"}))
    (root / "sweep.yaml").write_text(yaml.safe_dump(merge | search | {"adapters": list(pair.adapters)}))
    named = {"bert": bert_dir, "opinions": write_opinions(root / "opinions")}
    return named | {name: root / f"{name}.yaml" for name in ("merge", "sweep")}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_next_try_works(tmp_path, monkeypatch, inputs, toy, name):
    monkeypatch.setenv("LIT_WSL_CACHE", str(tmp_path / "work" / "cache"))
    work = tmp_path / "work"
    argv = [word.format(**inputs) for word in COMMANDS[name].split()]

    def start_over():
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(tmp_path / "sources", work / "cache" / "sources")

    start_over()
    code, total, told = run_until(argv, work)
    assert code == 0, told
    kinds = {path.rpartition(".")[2] for path in snapshot(work)}
    for moment, how in ((total * 2 // 3, "kill"), (1, "full"), (total, "full")):
        start_over()
        code, _, told = run_until(argv, work, max(1, moment), how)
        where = f"{name}, {how} at moment {moment} of {total}: {told}"
        assert code == -9 if how == "kill" else code in (0, 1), where
        assert "Traceback" not in told, where
        assert told.count("lit-wsl:") == (code == 1), where
        for path, data in snapshot(work).items():
            assert data or not path.endswith(WHOLE), (where, path)
            assert not path.endswith(".json") or json.loads(data) is not None, (where, path)
        code, _, told = run_until(argv, work)
        assert code == 0, (where, told)
        assert {path.rpartition(".")[2] for path in snapshot(work)} >= kinds, where
