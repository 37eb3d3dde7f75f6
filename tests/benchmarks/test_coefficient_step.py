"""The benchmark of a coefficient step, in small."""

import json

import pytest
import torch

from benchmarks.coefficient_step import Case, engine_step, kept_bytes, main
from benchmarks.history import entries
from lit_wsl.learning.live.engines import ENGINES

SMALL = ["--blocks", "1", "--width", "8", "--sources", "3", "--rank", "2", "--tokens", "4", "--runs", "1"]


def test_every_way_has_figures(tmp_path, capsys):
    assert main([*SMALL, "--json", str(tmp_path / "figures.json")]) == 0
    results = json.loads((tmp_path / "figures.json").read_text())
    rows = results["rows"]
    assert [one["floor"] for one in entries(results)] == [rows[0]["ms"] / 1e3]
    assert [row["way"] for row in rows] == ["plain training", "plain, weights frozen", *ENGINES]
    assert all(float(row["gradient"]) < 1e-4 for row in rows[2:])
    assert capsys.readouterr().out.count("\n|") == len(rows) + 1


def test_a_step_gives_the_derivatives_of_the_sum_of_all_tasks():
    case = Case(1, 8, 3, 2, 4)
    c = torch.full((3,), 0.3 + 1e-6, requires_grad=True)
    weights = {name: one.detach() for name, one in case.model.named_parameters()}
    for name, deltas in case.deltas.items():
        for source in range(3):
            weights[name] = weights[name] + c[source] * deltas.whole(source, torch.device("cpu"), torch.float32)
    losses = [torch.func.functional_call(case.model, weights, (batch,)).square().mean() for batch in case.batches]
    (expected,) = torch.autograd.grad(sum(losses), c)
    step, release = engine_step(case, "merge_once")
    assert step()[0][0].tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    release()


def test_what_is_kept_does_not_grow_with_the_sources_a8():
    few, many = (kept_bytes(Case(1, 16, sources, 2, 4), "merge_once") for sources in (2, 8))
    assert 0 < few == many
