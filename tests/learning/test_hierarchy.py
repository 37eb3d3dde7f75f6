"""G2: trees of merges: their shape, what they come to, what is kept of them, and what they hold at once."""

import json
import shutil
import weakref
from collections import defaultdict
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
import torch
import yaml

from lit_wsl.cli.main import run as main
from lit_wsl.errors import CheckpointError, ConfigError
from lit_wsl.learning.hierarchy import tree as hierarchy
from lit_wsl.learning.hierarchy.order import cosines_of
from lit_wsl.learning.hierarchy.params import node_params
from lit_wsl.learning.hierarchy.shape import Node, most_similar, neighbours, read_tree, tree_of
from lit_wsl.learning.hierarchy.updates import is_exact_adapter
from lit_wsl.learning.params import read_params
from lit_wsl.learning.rows import rows_of
from lit_wsl.learning.run import learn_merge
from lit_wsl.merging import merge, merge_state_dict
from lit_wsl.merging.config import MergeConfig
from lit_wsl.merging.plan import MergePlan
from lit_wsl.merging.settings import TransformSpec
from lit_wsl.merging.spec import MergeSpec
from lit_wsl.runs import RunLayout
from lit_wsl.state.reader import open_state
from tests.evaluation.pair import write_pair
from tests.merging.build import save_adapter, save_tuned
from tests.merging.opened import opened, updates

NAMES = ["praise", "noun", "third", "fourth", "fifth"]
STEPS = {"steps": 4, "batch_size": 4, "progress_bar": False, "lr": 0.05, "init_lambda": 0.7, "split": "validation"}


@pytest.fixture(scope="module")
def world(bert_dir, tmp_path_factory):
    """Five tasks on two data sets, with an adapter for each; two of them learned, three of them random."""
    root = tmp_path_factory.mktemp("world")
    pair = write_pair(bert_dir, root)
    registry = dict(pair.registry)
    for number, name in enumerate(NAMES[2:]):
        path = root / "adapters" / name
        save_adapter(bert_dir, path, number, r=3, target_modules=["query", "intermediate.dense"][number % 2 :])
        registry[name] = {**pair.registry[NAMES[number % 2]], "adapter": str(path)}
    return {"registry": registry, "base": str(bert_dir)}


@pytest.fixture
def layout(tmp_path):
    return RunLayout(tmp_path / "artifacts")


def _config(world, count=4, kind="supermerge", tree=None, changes=None, **params):
    optimizer = {"type": kind, "params": {**STEPS, **params}}
    if tree is not None:
        optimizer["params"]["hierarchical"] = {"enabled": True, **tree}
    fields = {"adapters": NAMES[:count], "base": world["base"], "method": "weighted_delta_n", "merge_mode": "union"}
    return MergeConfig(**{**fields, "tasks": world["registry"], "optimizer": optimizer, **(changes or {})})


def _shape(item):
    return [_shape(child) for child in item.children] if isinstance(item, Node) else item


def _record(found):
    return json.loads((found.directory / "tree.json").read_text())


def _learned(found, name):
    return json.loads((found.directory / name / "learning.json").read_text())


def _expected(config, found):
    """Base plus the sum of effective coefficients times the sources' updates, dense, in float64."""
    spec = config.to_merge_spec()
    kinds = {kind: list(getattr(spec, kind)) for kind in ("adapters", "models", "deltas")}
    sources, base = opened(**kinds, base=spec.base)
    state = {name: tensor.double().clone() for name, tensor in base.items()}
    told = _record(found)
    changed = sorted({name for source in sources for name in source.shapes})
    granularity = _learned(found, "root")["granularity"]
    of = rows_of(changed, granularity).names, rows_of(changed, granularity).of
    for number, source in enumerate(sources, start=1):
        by_row = dict(zip(told["rows"], told["effective_coefficients"][str(number)], strict=True))
        for name, update in updates(source, base).items():
            state[name] += by_row[of[0][of[1][name]]] * update
    return state


def _check_sum(config, found):
    merged = merge_state_dict(found.config.to_merge_spec())
    base = open_state(config.base)
    moved = 0.0
    for name, tensor in _expected(config, found).items():
        scale = max(1.0, float(tensor.abs().max()))
        assert float((merged[name].double() - tensor).abs().max()) <= 1e-6 * scale, name
        moved += float((tensor - base.read(name)).norm())
    assert moved > 0.1, "it proves nothing"


@pytest.mark.parametrize("count", range(2, 14))
@pytest.mark.parametrize("arity", [2, 3, 4, 20])
def test_neighbours_are_merged_level_by_level_g2(count, arity):
    """G2: against nested lists that are cut by hand."""
    level = list(range(count))
    while len(level) > 1:
        cut = [level[at : at + arity] for at in range(0, len(level), arity)]
        level = [part[0] if len(part) == 1 else part for part in cut]
    tree = tree_of(count, lambda items: neighbours(items, arity))
    assert _shape(tree) == level[0]
    assert tree.leaves == tuple(range(count))
    assert tree.name == "root"
    names = [node.name for node in tree.nodes()]
    assert len(set(names)) == len(names)
    assert names[-1] == "root"
    assert all(len(node.children) <= arity for node in tree.nodes())


def _by_force(cosines, arity):
    """Clustering written out: groups of leaves as nested lists; in each round the best of all pairs with room."""

    def flat(item):
        return [item] if isinstance(item, int) else [leaf for one in item for leaf in flat(one)]

    level = list(range(len(cosines)))
    while len(level) > 1:
        groups = [[one] for one in level]
        while True:
            best = None
            for i, j in combinations(range(len(groups)), 2):
                if len(groups[i]) + len(groups[j]) > arity:
                    continue
                pairs = [cosines[a][b] for a in flat(groups[i]) for b in flat(groups[j])]
                mean = sum(pairs) / len(pairs)
                if best is None or mean > best[0] + 1e-9:
                    best = mean, i, j
            if best is None:
                break
            _, i, j = best
            order = {id(item): level.index(item) for item in level}
            groups[i] = sorted(groups[i] + groups.pop(j), key=lambda item: order[id(item)])
        level = [group[0] if len(group) == 1 else group for group in groups]
    return level[0]


@pytest.mark.parametrize("arity", [2, 3, 5])
@pytest.mark.parametrize("seed", range(6))
def test_similar_sources_are_merged_first_g2(arity, seed):
    """G2: against a search over all pairs of nested lists."""
    vectors = torch.randn(3 + seed, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    unit = vectors / vectors.norm(dim=1, keepdim=True)
    cosines = (unit @ unit.T).tolist()
    tree = tree_of(len(vectors), lambda items: most_similar(items, arity, cosines))
    assert _shape(tree) == _by_force(cosines, arity)
    assert all(2 <= len(node.children) <= arity for node in tree.nodes())


def test_ties_go_to_the_first_sources_g2():
    """G2: equal cosines, and those that differ by rounding alone, give one tree."""
    even = torch.full((5, 5), 0.25, dtype=torch.float64)
    noise = torch.arange(25, dtype=torch.float64).view(5, 5) * 1e-13
    for cosines in (even, even + noise):
        groups = most_similar([[i] for i in range(5)], 2, cosines.tolist())
        assert groups == [[0, 1], [2, 3], [4]]
    pair = [[1.0, 0.0, 0.9], [0.0, 1.0, 0.1], [0.9, 0.1, 1.0]]
    assert most_similar([[0], [1], [2]], 2, pair) == [[0, 2], [1]]


def test_cosines_are_those_of_dense_updates_g2(world, tmp_path, monkeypatch):
    """G2: adapters, a tuned model and a saved delta, multiplied out in float64; few are read at once."""
    save_tuned(world["base"], tmp_path / "tuned", 3)
    config = _config(world, 3)
    merge(config.to_merge_spec(), output=str(tmp_path / "saved"), output_format="delta")
    fields = {"models": [str(tmp_path / "tuned")], "deltas": [str(tmp_path / "saved")], "output_format": "model"}
    spec = replace(config, **fields).to_merge_spec()
    sources, base = opened(**{kind: getattr(spec, kind) for kind in ("adapters", "models", "deltas")}, base=spec.base)
    dense = [updates(source, base) for source in sources]
    names = sorted({name for one in dense for name in one})
    flat = [
        torch.cat([one.get(n, torch.zeros_like(base[n], dtype=torch.float64)).flatten() for n in names])
        for one in dense
    ]
    expected = [[float(torch.dot(a, b) / a.norm() / b.norm()) for b in flat] for a in flat]
    held = _watch(monkeypatch)
    for tile in (1, 2, 9):
        held.clear()
        found = cosines_of(spec, names, tile)
        assert torch.allclose(torch.tensor(found), torch.tensor(expected), atol=1e-6)
        assert max(held.values()) <= min(tile, 5) + 1
    assert max(abs(expected[i][j]) for i, j in combinations(range(5), 2)) > 0.1, "it proves nothing"


@pytest.mark.parametrize("kind", ["supermerge", "adamerging", "gradient"])
def test_a_tree_comes_to_the_sum_of_effective_coefficients_g2(world, layout, kind):
    """G2: products along the path times the sources' updates, in float64."""
    config = _config(world, 4, kind, {"arity": 2})
    found = learn_merge(config, layout=layout)
    told = _record(found)
    first, second, root = (_learned(found, name)["final_coefficients"][0] for name in ("level1_1", "level1_2", "root"))
    products = [root[0] * first[0], root[0] * first[1], root[1] * second[0], root[1] * second[1]]
    assert [told["effective_coefficients"][str(leaf)] for leaf in range(1, 5)] == [[one] for one in products]
    assert len({round(one, 3) for one in products}) > 1, "it proves nothing"
    _check_sum(config, found)
    assert found.provenance == told
    assert told["status"] == "complete"
    assert told["optimizer_steps_completed"] == 12
    assert {name: (node["sources"], node["tasks"], node["children"]) for name, node in told["nodes"].items()} == {
        "level1_1": ([1, 2], NAMES[:2], ["source_1", "source_2"]),
        "level1_2": ([3, 4], NAMES[2:4], ["source_3", "source_4"]),
        "root": ([1, 2, 3, 4], NAMES[:4], ["level1_1", "level1_2"]),
    }
    for name, node in told["nodes"].items():
        assert node["objective"] == _learned(found, name)["final_objective"]
        assert _learned(found, name)["tasks"] == node["tasks"]


@pytest.mark.parametrize("variant", ["layer_wise", "tensor_wise"])
def test_finer_coefficients_multiply_row_by_row_g2(world, layout, variant):
    """G2: five sources of different layers, so that one is carried up."""
    config = _config(world, 5, "adamerging", {"arity": 2, "order": "clustered"}, variant=variant)
    found = learn_merge(config, layout=layout)
    _check_sum(config, found)
    told = _record(found)
    assert len(told["rows"]) > 1
    if variant == "tensor_wise":
        assert told["cosines"] == cosines_of(config.to_merge_spec(), told["rows"], 1)
    assert sorted(leaf for leaf in told["effective_coefficients"]) == ["1", "2", "3", "4", "5"]


def test_updates_stay_of_low_rank_while_that_is_exact_g2(world, layout):
    """G2: ranks add up to those of the parameters; beyond, and for dense sources, updates are dense."""
    config = _config(world, 4, tree={"arity": 2}, changes={"output_format": "adapter"})
    found = learn_merge(config, layout=layout)
    assert {one["kind"] for one in _record(found)["updates"].values()} == {"adapters"}
    assert len(found.config.adapters) == 2
    assert found.config.output_format == "adapter"
    merge(found.config.to_merge_spec(), output=str(layout.root / "out"))
    ranks = json.loads((layout.root / "out" / "adapter_config.json").read_text())
    assert ranks["r"] > 4


def test_ranks_that_exceed_a_parameter_make_no_adapter_g2(world, tmp_path):
    """G2: as its factors would be cut; nor do biases."""
    hidden = json.loads((Path(world["base"]) / "config.json").read_text())["hidden_size"]
    for ranks, bias, expected in (
        ((hidden - 1, 1), "none", True),
        ((hidden, 1), "none", False),
        ((1, 1), "all", False),
    ):
        for number, rank in enumerate(ranks):
            save_adapter(world["base"], tmp_path / str(number), number, r=rank, bias=bias)
        adapters = [str(tmp_path / "0"), str(tmp_path / "1")]
        assert is_exact_adapter(MergeSpec(adapters=adapters, base=world["base"], method="weighted_delta_n")) is expected


def test_updates_are_paired_with_coefficients_by_kind_g2(world, layout, tmp_path):
    """G2: a delta comes behind an adapter, whichever comes first in the tree."""
    save_adapter(world["base"], tmp_path / "praise", 7, bias="all")
    config = _config(world, 4, "gradient", {"arity": 2}, changes={"adapters": [str(tmp_path / "praise"), *NAMES[1:4]]})
    found = learn_merge(config, layout=layout)
    told = _record(found)
    assert {name: one["kind"] for name, one in told["updates"].items()} == {
        "level1_1": "deltas",
        "level1_2": "adapters",
    }
    assert told["nodes"]["root"]["children"] == ["level1_2", "level1_1"]
    root, first = (_learned(found, name)["final_coefficients"][0] for name in ("root", "level1_1"))
    assert told["effective_coefficients"]["2"] == [root[1] * first[1]]
    assert root[0] != root[1], "it proves nothing"
    _check_sum(config, found)


def test_dense_sources_give_deltas_g2(world, layout, tmp_path):
    """G2: adapters beside a tuned model; the tree is written as a model by default."""
    save_tuned(world["base"], tmp_path / "fourth", 3)
    config = _config(world, 3, tree={"arity": 2}, changes={"models": [str(tmp_path / "fourth")]})
    found = learn_merge(config, layout=layout)
    kinds = {name: one["kind"] for name, one in _record(found)["updates"].items()}
    assert kinds == {"level1_1": "adapters", "level1_2": "deltas"}
    assert (len(found.config.adapters), len(found.config.deltas), found.config.models) == (1, 1, [])
    assert found.config.format == "model"
    _check_sum(config, found)


def test_an_arity_for_all_is_the_flat_run_g2(world, layout):
    """G2: bit by bit, and as the same configuration, whose runs lie elsewhere."""
    for order in ("breadth_first", "clustered"):
        flat = learn_merge(_config(world, 4, "gradient", variant="layer_wise"), layout=layout)
        tree = {"arity": 4, "order": order}
        found = learn_merge(_config(world, 4, "gradient", tree, variant="layer_wise"), layout=layout)
        assert replace(found.config, learned_from=flat.config.learned_from) == flat.config
        assert _learned(found, "root")["final_coefficients"] == flat.provenance["final_coefficients"]
        told = _record(found)["effective_coefficients"]
        assert [list(row) for row in zip(*told.values(), strict=True)] == flat.provenance["final_coefficients"]
    prepared = {"variant": "layer_wise_plus_plus", "plus_plus_lambda": 0.5}
    flat = learn_merge(_config(world, 3, "adamerging", **prepared), layout=layout)
    found = learn_merge(_config(world, 3, "adamerging", {"arity": 3}, **prepared), layout=layout)
    assert replace(found.config, learned_from=flat.config.learned_from) == flat.config


def test_a_task_counts_by_the_source_that_holds_it_g2(world, layout):
    """G2: baselines of a merge of merges are losses of the update that has the task's source below it."""
    found = learn_merge(_config(world, 4, "gradient", {"arity": 2}), layout=layout)
    baselines = _learned(found, "root")["prepared"]["baselines"]
    assert baselines.keys() == set(NAMES[:4])
    from lit_wsl.learning.gradient import GradientMerging, WeightSettings
    from tests.learning.learning import Oracle, batches, cross_entropy, fit

    config = replace(found.config, optimizer=None)
    learner = GradientMerging(
        config, source_tasks=[NAMES[:2], NAMES[2:4]], tasks=NAMES[:4], weights=WeightSettings(baseline_batches=2)
    )
    fit(learner, 1)
    learner.live.close()
    oracle, seen = Oracle(learner, cross_entropy), batches(learner, 2)
    for place, task in enumerate(NAMES[:4]):
        alone = torch.tensor([[float(place < 2), float(place >= 2)]], dtype=torch.float64)
        expected = float(torch.stack([oracle.loss(task, alone, rows[task]) for rows in seen]).mean())
        assert learner.baselines[task] == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ConfigError, match="'fifth' has none"):
        GradientMerging(config, source_tasks=[NAMES[:2], NAMES[2:4]], tasks=NAMES)
    with pytest.raises(ConfigError, match="for 1 of 2 sources: third or fourth"):
        GradientMerging(config, source_tasks=[NAMES[:2], NAMES[2:4]], tasks=NAMES[:2])


def test_transforms_are_for_the_sources_alone_g2(world, layout):
    """G2: a source that is carried up is prepared by itself, and what was merged is not prepared again."""
    transforms = [TransformSpec("trim", {"k": 30.0})]
    config = _config(world, 3, tree={"arity": 2}, changes={"transforms": transforms})
    found = learn_merge(config, layout=layout)
    assert found.config.transforms == []
    written = {name: one["path"] for name, one in _record(found)["updates"].items()}
    assert written.keys() == {"level1_1", "source_3"}
    root = _learned(found, "root")["final_coefficients"][0]
    below = _learned(found, "level1_1")["final_coefficients"][0]
    adapters = config.to_merge_spec().adapters
    plain = {"base": world["base"], "transforms": transforms, "merge_mode": "union", "output_format": "delta"}
    expected = {name: tensor.double() for name, tensor in _base(world).items()}
    for at, coefficient in ((0, root[0] * below[0]), (1, root[0] * below[1]), (2, root[1])):
        one = {"method": "weighted_delta_n", "method_params": {"task_coefficients": [1.0]}, "adapters": [adapters[at]]}
        prepared = merge_state_dict(MergeConfig(**{**plain, **one}).to_merge_spec())
        for name, tensor in prepared.items():
            expected[name] += coefficient * (tensor.double() - _base(world)[name].double())
    merged = merge_state_dict(found.config.to_merge_spec())
    assert all(float((merged[name].double() - tensor).abs().max()) <= 2e-6 for name, tensor in expected.items())


def _base(world):
    reader = open_state(world["base"])
    return {name: reader.read(name) for name in reader.keys()}


def test_plus_plus_prepares_once_g2(world, layout):
    """G2: AdaMerging++ trims and aligns task vectors of the sources; merges of them are added as they are."""
    config = _config(world, 5, "adamerging", {"arity": 2}, variant="task_wise_plus_plus")
    found = learn_merge(config, layout=layout)
    node = {name: yaml.safe_load((found.directory / name / "merge.yaml").read_text()) for name in ("level1_1", "root")}
    assert [one["name"] for one in node["level1_1"]["transforms"]] == ["consensus"]
    assert node["root"]["transforms"] == []
    assert {one["kind"] for one in _record(found)["updates"].values()} == {"deltas"}
    assert "source_5" in _record(found)["updates"]
    with pytest.raises(ConfigError, match=r"The update of level1_1 is no adapter.*set `output_format`"):
        learn_merge(replace(config, output_format="adapter"), directory=layout.root / "refused")
    assert not (layout.root / "refused" / "level1_1").exists(), "before anything is learned"


def _fail_at(monkeypatch, name):
    """Make the run of one merge raise when it begins."""
    plain = hierarchy.node_params

    def failing(params, tasks, of_all, node):
        if node == name:
            raise RuntimeError("killed")
        return plain(params, tasks, of_all, node)

    monkeypatch.setattr(hierarchy, "node_params", failing)


def test_a_killed_tree_goes_on_where_it_was_g2(world, tmp_path, monkeypatch):
    """G2: finished merges are not learned again, and the outcome is that of a tree that nothing stopped."""
    config = _config(world, 4, "adamerging", {"arity": 2, "order": "clustered"}, variant="layer_wise")
    whole = learn_merge(config, directory=tmp_path / "whole")
    assert not whole.is_earlier
    with monkeypatch.context() as patch:
        _fail_at(patch, "level1_2")
        with pytest.raises(RuntimeError, match="killed"):
            learn_merge(config, directory=tmp_path / "killed")
    assert json.loads((tmp_path / "killed" / "tree.json").read_text())["status"] == "learning"
    done = tmp_path / "killed" / "level1_1"
    before = {file: file.stat().st_mtime_ns for file in done.rglob("*") if file.is_file()}
    assert done / "learning.json" in before
    with monkeypatch.context() as patch:
        patch.setattr(hierarchy, "cosines_of", None)
        found = learn_merge(config, directory=tmp_path / "killed")
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert found.provenance["effective_coefficients"] == whole.provenance["effective_coefficients"]
    states = [merge_state_dict(one.config.to_merge_spec()) for one in (whole, found)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_finished_tree_is_taken_up_g2(world, tmp_path, monkeypatch):
    """G2: by the root alone; updates below it may go, and one that lacks is written again."""
    config = _config(world, 5, tree={"arity": 2})
    first = learn_merge(config, directory=tmp_path / "tree")
    told = _record(first)["updates"]
    assert told.keys() == {"level1_1", "level1_2", "level2_1"}
    shutil.rmtree(tmp_path / "tree" / "level1_1" / "update")
    with monkeypatch.context() as patch:
        patch.setattr("lit_wsl.learning.run.make_data", None)
        again = learn_merge(replace(config, dtype="bfloat16"), directory=tmp_path / "tree")
        assert again.is_earlier
        assert again.config == replace(first.config, dtype="bfloat16")
        assert again.provenance == first.provenance
        assert not (tmp_path / "tree" / "level1_1" / "update").exists()
        shutil.rmtree(tmp_path / "tree" / told["level2_1"]["path"])
        learn_merge(config, directory=tmp_path / "tree")
    assert _record(first)["updates"] == told


def test_a_damaged_update_is_refused_g2(world, tmp_path):
    """G2: by its bytes, with one line that names the file and the remedy, which helps."""
    config = _config(world, 3, tree={"arity": 2})
    found = learn_merge(config, directory=tmp_path / "tree")
    path = tmp_path / "tree" / _record(found)["updates"]["level1_1"]["path"]
    file = path / "adapter_model.safetensors"
    whole = file.read_bytes()
    for damaged in (whole[:-1] + bytes([whole[-1] ^ 1]), whole[:100], None):
        if damaged is None:
            file.unlink()
        else:
            file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=f"{path} is not as it was written.*remove it") as told:
            learn_merge(config, directory=tmp_path / "tree")
        assert "\n" not in str(told.value)
    shutil.rmtree(path)
    assert learn_merge(config, directory=tmp_path / "tree").config == found.config
    assert file.read_bytes() == whole


def test_another_tree_is_not_taken_up_g2(world, tmp_path):
    config = _config(world, 3, tree={"arity": 2})
    learn_merge(config, directory=tmp_path / "tree")
    for other, what in (({"arity": 3}, "arity"), ({"order": "clustered"}, "order")):
        with pytest.raises(CheckpointError, match=f"another tree .{what} differs.; choose another"):
            learn_merge(_config(world, 3, tree=other), directory=tmp_path / "tree")
    (tmp_path / "tree" / "tree.json").write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        learn_merge(config, directory=tmp_path / "tree")


def test_a_tree_knows_its_sources_by_their_content_g2(world, tmp_path, monkeypatch):
    """G2: the same sources under other paths are the same tree; others under the same paths are not."""
    monkeypatch.chdir(tmp_path)
    for name in NAMES[2:4]:
        shutil.copytree(world["registry"][name]["adapter"], tmp_path / name)
    paths = [str(tmp_path / name) for name in NAMES[2:4]]
    config = _config(world, tree={"arity": 2}, changes={"adapters": paths})
    first = learn_merge(config, directory=tmp_path / "tree")
    again = learn_merge(replace(config, adapters=NAMES[2:4]), directory=tmp_path / "tree")
    assert again.provenance == first.provenance
    shutil.rmtree(paths[0])
    shutil.copytree(paths[1], paths[0])
    with pytest.raises(CheckpointError, match="another tree"):
        learn_merge(config, directory=tmp_path / "tree")


def _watch(monkeypatch):
    """Most updates of one parameter that live at the same time, by its name, while plans are read."""
    alive, most = defaultdict(weakref.WeakSet), {}
    plain = MergePlan.task_vectors

    def task_vectors(plan, name, base):
        found = plain(plan, name, base)
        alive[name].update(found)
        most[name] = max(most.get(name, 0), len(alive[name]))
        return found

    monkeypatch.setattr(MergePlan, "task_vectors", task_vectors)
    return most


@pytest.mark.parametrize("arity", [2, 3])
@pytest.mark.parametrize("order", ["breadth_first", "clustered"])
@pytest.mark.parametrize("dense", [False, True])
def test_no_more_updates_are_open_than_a_merge_has_g2(world, layout, monkeypatch, arity, order, dense):
    """G2: at most as many updates of one parameter at once as the arity, and one more; of five sources."""
    most = _watch(monkeypatch)
    transforms = [TransformSpec("trim", {"k": 30.0})] if dense else []
    tree = {"arity": arity, "order": order}
    learn_merge(_config(world, 5, tree=tree, changes={"transforms": transforms}, steps=2), layout=layout)
    assert 2 <= max(most.values()) <= arity + 1
    most.clear()
    if not dense:
        learn_merge(_config(world, 5, steps=2), layout=layout)
        assert max(most.values()) == 5, "it proves nothing"


def test_a_tree_is_merged_and_measured_by_the_command_line_g2(world, tmp_path, monkeypatch, capsys):
    """G2: `lit-wsl merge` and `evaluate-merged` go on with what a tree learned; every source's task is measured."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tasks.yaml").write_text(yaml.safe_dump({"tasks": world["registry"]}))
    optimizer = {"type": "supermerge", "params": {**STEPS, "hierarchical": {"enabled": True, "arity": 2}}}
    content = {"method": "weighted_delta_n", "adapters": NAMES[:3], "base": world["base"], "tasks": "tasks.yaml"}
    (tmp_path / "merge.yaml").write_text(yaml.safe_dump({**content, "merge_mode": "union", "optimizer": optimizer}))
    assert main(["merge", "--config", "merge.yaml", "--output", "out"]) == 0
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    assert "supermerge: 8 updates" in capsys.readouterr().out
    assert main(["evaluate-merged", "--config", "merge.yaml"]) == 0
    told = capsys.readouterr().out
    assert "Learned before." in told
    assert all(name in told for name in NAMES[:3])


def test_a_merge_of_a_tree_has_parameters_of_its_own_tasks_g2():
    params = read_params(
        "gradient",
        {
            **STEPS,
            "hierarchical": {"enabled": True},
            "variant": "layer_wise_plus_plus",
            "ce_task_weighting": "manual",
            "ce_manual_task_weights": {"a": 1, "b": 2, "c": 3},
            "sampling": {"default": "inverse", "per_task": {"a": "balanced", "c": "none"}},
            "checkpoint_dir": "kept",
            "heldout_eval": {"split": "test", "tasks": ["c", "a"], "reference_point": [0.5, 0.1]},
        },
    )
    own = node_params(params, ["a", "b"], ["a", "b", "c"], "level1_1")
    assert (own.tree, own.is_prepared, own.granularity) == (None, False, "layer")
    assert own.ce_manual_task_weights == {"a": 1, "b": 2}
    assert own.sampling == {"default": "inverse", "per_task": {"a": "balanced"}}
    assert own.checkpoint_dir == "kept/level1_1"
    assert (own.heldout_eval["tasks"], own.heldout_eval["reference_point"]) == (["a"], {"a": 0.1})
    assert node_params(params, ["b"], ["a", "b", "c"], "level1_1").heldout_eval is None
    assert node_params(params, ["a", "b", "c"], ["a", "b", "c"], "root").heldout_eval == params.heldout_eval


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"enabled": True, "arity": 1}, "`optimizer.params.hierarchical.arity` must be a whole number of at least 2"),
        ({"enabled": True, "arity": 2.5}, "at least 2, got 2.5"),
        ({"enabled": True, "arity": True}, "at least 2, got True"),
        ({"enabled": True, "order": "breadth-first"}, "Did you mean 'breadth_first'"),
        ({"enabled": "yes"}, "must be true or false, got 'yes'"),
        ({"enabled": True, "arty": 2}, "no key 'arty'. Did you mean 'arity'"),
    ],
)
def test_settings_that_make_no_tree_are_refused_g2(given, message):
    with pytest.raises(ConfigError, match=message):
        read_params("adamerging", {"hierarchical": given})


def test_what_cannot_be_a_tree_is_refused_g2(world, layout):
    assert read_tree({"arity": 3}) is None, "it has to be enabled"
    with pytest.raises(ConfigError, match="two sources at least, got 1"):
        learn_merge(_config(world, 1, tree={}), layout=layout)
    with pytest.raises(ConfigError, match="`regret_smoothmax` learns shares against single sources"):
        read_params("regret_smoothmax", {"hierarchical": {"enabled": True}})
    with pytest.raises(ConfigError, match="leave `resume_checkpoint` out"):
        learn_merge(_config(world, 3, tree={}, resume_checkpoint="last.ckpt"), layout=layout)
    with pytest.raises(ConfigError, match="No task to learn on for 1 of 4 sources: third"):
        learn_merge(_config(world, 4, tree={}, tasks=["praise", "noun", "fourth"]), layout=layout)


def test_held_out_rows_choose_in_every_merge_g2(world, layout):
    """G2, H1: against the tasks' own adapters, which are known by the sources alone."""
    bare = {
        name: {key: value for key, value in one.items() if key != "adapter"} for name, one in world["registry"].items()
    }
    paths = [world["registry"][name]["adapter"] for name in NAMES[:2]]
    heldout = {"split": "test", "every_updates": 2, "tasks": ["praise", "noun"]}
    config = _config(
        world,
        tree={"arity": 2},
        heldout_eval=heldout,
        changes={"adapters": [*paths, world["registry"]["third"]["adapter"]], "tasks": bare},
    )
    found = learn_merge(config, layout=layout)
    for name in ("level1_1", "root"):
        assert _learned(found, name)["heldout"]["tasks"] == ["praise", "noun"]
        assert (found.directory / name / "heldout.csv").is_file()
    assert found.config.evaluated_tasks == NAMES[:3]
    assert {name: one.get("adapter") for name, one in found.config.registry.items()} == {
        **dict.fromkeys(NAMES),
        **dict(zip(NAMES[:3], config.adapters, strict=True)),
    }
