"""The page on callbacks: its YAML gives the callbacks that it shows."""

import re

import pytest
import yaml

from lit_wsl.cli.main import run
from tests.docs.examples import DOCS, examples

PAGE = "callbacks.md"


def test_every_callback_has_a_short_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = (DOCS / PAGE).read_text()
    [block] = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    shown = [one["class_path"] for one in yaml.safe_load(block)["trainer"]["callbacks"]]
    listed = re.findall(r"^\| \[`(\w+)`\]", text, re.MULTILINE)
    assert set(shown) < set(listed)
    assert all(name in examples(PAGE)[0] for name in shown)
    (tmp_path / "callbacks.yaml").write_text("model: lightning.pytorch.demos.boring_classes.BoringModel\n" + block)
    assert run(["fit", "--config", "callbacks.yaml", "--print_config"]) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert all(f".{name}\n" in printed for name in shown)


@pytest.mark.parametrize("name", re.findall(r"^\| \[`(\w+)`\]", (DOCS / PAGE).read_text(), re.MULTILINE))
def test_every_callback_exists(name):
    from lightning import Callback

    import lit_wsl.cli.trainer as trainer

    assert name in trainer._class_names(Callback)
