"""Every learner against its objective written out in float64; what it leaves, and what it goes on from."""

import copy
from dataclasses import replace

import lightning
import pytest
import torch
from torch import nn

from lit_wsl.errors import ConfigError, DataError, MergeError
from lit_wsl.learning.adamerging import AdaMerging
from lit_wsl.learning.coefficients import CoefficientSettings
from lit_wsl.learning.data import MergeTaskData
from lit_wsl.learning.gradient import GradientMerging, SuperMerge, WeightSettings
from lit_wsl.learning.live import EngineSettings
from lit_wsl.learning.regret_smoothmax import RegretSmoothMax
from lit_wsl.learning.supervised import LossSettings
from lit_wsl.merging import merge_state_dict
from lit_wsl.merging.settings import TransformSpec
from tests.learning.build import relative
from tests.learning.learning import EXACT, Oracle, batches, cross_entropy, diverse, entropy, fit, merge_of, sgd
from tests.merging.build import save_adapter, save_tuned
from tests.processes import run_two_processes

NAMES = ["praise", "noun"]


@pytest.mark.parametrize("is_made", [True, False])
def test_data_of_unknown_tasks_or_of_none_are_refused(pair, is_made):
    tasks = pair.tasks if is_made else pair.registry
    assert list(MergeTaskData(tasks, names=["noun"]).tasks) == ["noun"]
    with pytest.raises(ConfigError, match="no task 'nuon'.*Did you mean 'noun'"):
        MergeTaskData(tasks, names=["praise", "nuon"])
    with pytest.raises(ConfigError, match="no tasks"):
        MergeTaskData(tasks, names=[])


def test_a_source_is_known_by_its_task_in_lower_case_too_a7_5(pair, bert_dir, tmp_path):
    save_adapter(bert_dir, tmp_path / "Praise", 0, target_modules=["query"])
    save_adapter(bert_dir, tmp_path / "NOUN", 1, target_modules=["query"])
    learner = GradientMerging(merge_of(pair, bert_dir, adapters=[str(tmp_path / "Praise"), str(tmp_path / "NOUN")]))
    assert (learner.tasks, learner.source_tasks) == (NAMES, [["praise"], ["noun"]])


class Watch(lightning.Callback):
    """Remembers what every step found."""

    def __init__(self):
        self.records, self.before = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.before.append(pl_module.coefficients().detach().clone())

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.records.append(pl_module.latest)


def _of_objective(learner, coefficients, batch):
    """Objective and derivative of a learner, written out."""
    c = coefficients.double().requires_grad_()
    if isinstance(learner, AdaMerging):
        value = Oracle(learner, diverse if learner._diversity else entropy).losses(c, batch).mean()
    elif isinstance(learner, RegretSmoothMax):
        value = _regret(learner, c, batch)
    else:
        losses = Oracle(learner, cross_entropy).losses(c, batch)
        value = (losses * torch.tensor([learner.multipliers[task] for task in batch], dtype=torch.float64)).sum()
    (gradient,) = torch.autograd.grad(value, c)
    return float(value.detach()), gradient


def _regret(learner, c, batch):
    oracle = Oracle(learner, cross_entropy)
    seen = batches(learner, 3)
    regrets = []
    for place, task in enumerate(NAMES):
        alone = torch.zeros_like(c)
        alone[:, place] = 1.0
        base, best = (
            torch.stack([oracle.loss(task, one, rows[task]) for rows in seen]).mean()
            for one in (torch.zeros_like(c), alone.detach())
        )
        assert best < base, "it proves nothing"
        regrets.append((oracle.loss(task, c, batch[task]) - best) / (base - best + 1e-4))
    return 0.1 * (torch.stack(regrets) / 0.1).logsumexp(0)


LEARNERS = {
    "adamerging": (AdaMerging, {"granularity": "layer"}),
    "adamerging diverse": (AdaMerging, {"diversity": 0.7}),
    "adamerging tensor": (AdaMerging, {"granularity": "tensor"}),
    "gradient": (GradientMerging, {"weights": WeightSettings(baseline_batches=3)}),
    "gradient groups": (
        GradientMerging,
        {"granularity": "groups", "groups": ["query"], "weights": WeightSettings("equal")},
    ),
    "supermerge": (SuperMerge, {"granularity": "layer"}),
    "regret_smoothmax": (RegretSmoothMax, {"baseline_batches": 3}),
}


@pytest.mark.parametrize("name", LEARNERS)
def test_objective_and_gradient_are_those_written_out_a7_50_a7_51_a7_52_a7_53(merge, name):
    cls, options = LEARNERS[name]
    learner, watch = cls(merge, optimizer=sgd(), engine=EXACT, **options), Watch()
    trainer = fit(learner, 3, trainer={"callbacks": [watch]})
    assert trainer.global_step == 3
    learner.live.close()
    for record, before, batch in zip(watch.records, watch.before, batches(learner, 3), strict=True):
        objective, gradient = _of_objective(learner, before, batch)
        assert float(gradient.norm()) > 1e-3, "it proves nothing"
        assert record.objective == pytest.approx(objective, rel=1e-6)
        assert relative(record.gradient, gradient) <= 1e-6


def test_baseline_weights_are_those_of_single_sources_by_name_a7_51(bert_dir, pair):
    """A7.51: sources in another order than tasks are paired by name."""
    turned = merge_of(pair, bert_dir, adapters=pair.adapters[::-1])
    learner = GradientMerging(turned, tasks=NAMES, weights=WeightSettings(baseline_batches=3))
    fit(learner, 1)
    learner.live.close()
    oracle, seen = Oracle(learner, cross_entropy), batches(learner, 3)
    for task in NAMES:
        alone = torch.zeros(1, 2, dtype=torch.float64)
        alone[0, pair.adapters[::-1].index(task)] = 1.0
        expected = float(torch.stack([oracle.loss(task, alone, rows[task]) for rows in seen]).mean())
        assert learner.baselines[task] == pytest.approx(expected, rel=1e-5)
        assert learner.multipliers[task] == pytest.approx(1 / (2 * expected), rel=1e-5)


@pytest.mark.parametrize("name", LEARNERS)
def test_merging_by_what_was_learned_gives_the_model_that_was_seen(merge, name):
    cls, options = LEARNERS[name]
    learner = cls(merge, optimizer=sgd(), **options)
    fit(learner, 4)
    seen = learner.merged_state()
    merged = merge_state_dict(learner.learned().to_merge_spec())
    learner.live.close()
    assert seen.keys() <= merged.keys() | {"embeddings.position_ids"}
    moved = 0.0
    for key, tensor in merged.items():
        assert float((seen[key] - tensor).abs().max()) <= 1e-6
        moved += float((tensor - learner.live.plan.base.read(key)).norm())
    assert moved > 0.1, "it proves nothing"


@pytest.mark.parametrize("residency", ["cpu_stream", "gpu_cache"])
def test_tuned_models_are_learned_beside_adapters(bert_dir, pair, tmp_path, residency):
    """A whole model among the sources is read from disk, and merging by what was learned gives what was seen."""
    save_tuned(bert_dir, tmp_path / "noun", 3)
    mixed = merge_of(
        pair, bert_dir, adapters=[pair.paths["praise"]], models=[str(tmp_path / "noun")], merge_mode="union"
    )
    learner = SuperMerge(mixed, granularity="layer", engine=EngineSettings(delta_residency=residency), optimizer=sgd())
    fit(learner, 3)
    seen, merged = learner.merged_state(), merge_state_dict(learner.learned().to_merge_spec())
    assert learner.merge.source_tasks == NAMES
    assert max(float((seen[key] - merged[key]).abs().max()) for key in merged) <= 1e-5
    values = learner.coefficients()[1:]  # no adapter has what the default row is of
    assert float((values - 0.3).detach().abs().min()) > 1e-4, "it proves nothing"


def test_plus_plus_prepares_task_vectors_and_the_merge_repeats_it_a7_2(bert_dir, pair):
    """A7.2: trimmed over the whole model, aligned, each vector kept apart."""
    prepared = merge_of(pair, bert_dir, transforms=[TransformSpec("consensus", {"k": 20.0, "lambda": 0.5})])
    learner = AdaMerging(prepared, granularity="layer", optimizer=sgd())
    fit(learner, 3)
    seen, merged = learner.merged_state(), merge_state_dict(learner.learned().to_merge_spec())
    learner.live.close()
    changed = [key for key in merged if not merged[key].equal(learner.live.plan.base.read(key))]
    assert changed
    assert all(float((seen[key] - merged[key]).abs().max()) <= 1e-6 for key in merged)
    entries = sum(int((merged[key] != learner.live.plan.base.read(key)).sum()) for key in changed)
    assert entries < 0.5 * sum(merged[key].numel() for key in changed), "what was trimmed is not merged"


def test_unbounded_shares_are_exported_h2(merge):
    """H2: softmax times a magnitude that learns; coefficients above 1 go through `weighted_delta_n`."""
    settings = CoefficientSettings("simplex_softmax_scaled", magnitude=3.0, magnitude_scope="global")
    learner = SuperMerge(merge, coefficients=settings, initial=[0.9, 0.1], optimizer=sgd(0.05))
    first = learner.coefficients.values()
    fit(learner, 3)
    values = learner.coefficients.values()
    assert max(values[0]) > 1.0
    assert sum(values[0]) == pytest.approx(float(learner.coefficients.magnitude), rel=1e-6)
    assert sum(first[0]) == pytest.approx(3.0)
    assert sum(values[0]) != pytest.approx(3.0), "the magnitude learns, too"
    seen, merged = learner.merged_state(), merge_state_dict(learner.learned().to_merge_spec())
    assert all(float((seen[key] - merged[key]).abs().max()) <= 1e-6 for key in merged)


@pytest.mark.parametrize(
    "impl", ["streaming_parametrize", "functional_clone_legacy", "fused_linear", "fused_lora_linear"]
)
def test_implementations_learn_the_same(merge, impl):
    learned = []
    for engine in (EXACT, replace(EXACT, merge_impl=impl)):
        learner = SuperMerge(merge, engine=engine, optimizer=sgd())
        fit(learner, 5)
        learned.append(learner.coefficients().detach())
    assert torch.allclose(*learned, rtol=0, atol=1e-6)
    assert float((learned[0] - 0.3).abs().max()) > 0.01, "it proves nothing"


def test_checkpointed_activations_learn_the_same_a7_24_a7_25(merge):
    learned = []
    for engine in (EngineSettings(), EngineSettings(gradient_checkpointing=True)):
        learner = SuperMerge(merge, engine=engine, optimizer=sgd())
        model = learner.live.backbone
        before = copy.deepcopy(model.config.to_dict()), model.training
        fit(learner, 3)
        assert (model.config.to_dict(), model.training) == before, "the model is given back as it was"
        learned.append(learner.coefficients().detach())
    assert torch.equal(*learned)


def test_dropout_is_off_and_comes_back_a7_25(merge):
    learner = SuperMerge(merge, engine=EngineSettings(gradient_checkpointing=True, zero_dropout=True))
    found = [m.p for m in learner.live.backbone.modules() if isinstance(m, nn.Dropout)]
    assert max(found) > 0.0, "it proves nothing"
    learner.live.open(learner.coefficients.rows, torch.device("cpu"))
    assert {m.p for m in learner.live.backbone.modules() if isinstance(m, nn.Dropout)} == {0.0}
    learner.live.close()
    assert [m.p for m in learner.live.backbone.modules() if isinstance(m, nn.Dropout)] == found


def test_accumulated_steps_are_one_update_of_their_mean_a7_26(merge):
    """A7.26, A7.6: steps are counted, not updates; what is left over at the end makes an update, too."""
    one = SuperMerge(merge, optimizer=sgd())
    trainer = fit(one, 5, trainer={"accumulate_grad_batches": 2})
    assert trainer.global_step == 3
    other = SuperMerge(merge, optimizer=sgd())
    watch = Watch()
    seen = batches(other, 5)
    gradients = []
    other.live.open(other.coefficients.rows, torch.device("cpu"))
    numbers = other.coefficients.raw
    for first in (0, 2, 4):
        part = seen[first : first + 2]
        gradients = []
        for batch in part:
            other.log = lambda *_, **__: None
            other.log_dict = other.log
            (found,) = torch.autograd.grad(other.training_step(batch, 0), numbers)
            gradients.append(found)
        with torch.no_grad():
            numbers -= 0.5 * sum(gradients) / 2
    assert watch.records == []
    assert torch.allclose(one.coefficients(), other.coefficients(), atol=1e-6)


def test_coefficients_stay_in_their_bounds_a7_13(merge):
    settings = CoefficientSettings(minimum=0.2, maximum=0.4)
    learner = AdaMerging(merge, coefficients=settings, optimizer=sgd(50.0))
    fit(learner, 3)
    values = learner.coefficients().detach()
    assert bool(((values >= 0.2) & (values <= 0.4)).all())
    assert bool(((values == 0.2) | (values == 0.4)).any()), "it proves nothing"


def test_a_resumed_run_ends_where_the_uninterrupted_one_does_a7_45(merge, tmp_path):
    """A7.45: coefficients, optimizer, order of rows and baselines are those of the checkpoint."""

    class Kill(lightning.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 4:
                trainer.save_checkpoint(tmp_path / "at4.ckpt")
                raise RuntimeError("killed")

    def learner():
        return GradientMerging(merge, granularity="layer", weights=WeightSettings(baseline_batches=2))

    whole = learner()
    fit(whole, 9)
    with pytest.raises(RuntimeError, match="killed"):
        fit(learner(), 9, trainer={"callbacks": [Kill()]})
    resumed = learner()
    resumed.prepare = lambda: pytest.fail("baselines are kept")
    trainer = fit(resumed, 9, ckpt_path=tmp_path / "at4.ckpt")
    assert trainer.global_step == 9
    assert torch.equal(whole.coefficients.raw, resumed.coefficients.raw)
    held = torch.load(tmp_path / "at4.ckpt", weights_only=True)["state_dict"]
    assert set(held) == {"coefficients.raw"}, "no backbone in it"


@pytest.mark.parametrize("name", ["adamerging", "gradient", "regret_smoothmax"])
def test_two_processes_learn_as_one_with_double_batches(bert_dir, pair, merge, tmp_path, name):
    import json

    spec = {"merge": {"adapters": pair.adapters, "base": str(bert_dir), "tasks": pair.registry}, "learner": name}
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    run_two_processes("tests.learning.two_processes", tmp_path / "spec.json", tmp_path / "found.json")
    found = torch.tensor(json.loads((tmp_path / "found.json").read_text()))
    from tests.learning.two_processes import make

    alone = make(name, merge)
    fit(alone, 4, batch_size=6)
    expected = alone.coefficients().detach()
    assert float((expected - expected.flatten()[0]).abs().max()) > 1e-3, "it proves nothing"
    assert torch.allclose(found, expected, atol=1e-6)


def test_validation_tells_losses_over_all_rows(merge):
    learner = SuperMerge(merge)
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    data = MergeTaskData(dict(learner.task_objects), validation_split="validation")
    (logged,) = trainer.validate(learner, data, verbose=False)
    oracle = Oracle(learner, cross_entropy)
    for task, one in learner.task_objects.items():
        rows = one.data.collate(list(one.data.examples("validation")))
        expected = float(oracle.loss(task, torch.full((1, 2), 0.3, dtype=torch.float64), rows))
        assert logged[f"val/loss/{task}"] == pytest.approx(expected, rel=1e-5)
    assert logged["val/objective"] == pytest.approx(sum(logged[f"val/loss/{task}"] for task in NAMES) / 2)


def test_a_task_without_rows_to_validate_on_is_named(merge):
    learner = SuperMerge(merge)
    learner.on_validation_start()
    learner.on_validation_epoch_start()
    with pytest.raises(DataError, match="Task 'praise': it has no rows to measure; name a split"):
        learner.on_validation_epoch_end()


def test_sampling_by_classes_that_rows_do_not_have_is_told(merge):
    learner = SuperMerge(merge)
    tasks = {"praise": replace(learner.task_objects["praise"], label_column="mood")}
    data = MergeTaskData(tasks, sampling={"default": {"enabled": True, "strategy": "inverse"}})
    with pytest.raises(ConfigError, match="Task 'praise': `sampling` by 'inverse' needs the class of every row"):
        data.train_dataloader()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ["praise"]}, r"No task to learn on for 1 of 2 sources: noun"),
        ({"tasks": ["praise", "nuon"]}, r"No task to learn on"),
        ({"tasks": ["praise", "noun", "nuon"]}, r"'nuon'.*Did you mean 'noun'"),
        ({"tasks": []}, "none"),
    ],
)
def test_tasks_that_do_not_fit_are_refused_a7_5(merge, changes, message):
    with pytest.raises(ConfigError, match=message):
        AdaMerging(merge, **changes)


def test_tasks_are_known_in_any_case_and_once_a7_5(merge):
    assert AdaMerging(merge, tasks=["Praise", "praise", "NOUN"]).tasks == NAMES


def test_a_merge_that_cannot_be_learned_on_is_refused(bert_dir, pair, tmp_path):
    with pytest.raises(ConfigError, match="name the base"):
        AdaMerging(merge_of(pair, bert_dir, base=None))
    with pytest.raises(ConfigError, match="name `tasks`"):
        AdaMerging(merge_of(pair, bert_dir, tasks=None))
    with pytest.raises(ConfigError, match="tanh_alpha"):
        SuperMerge(merge_of(pair, bert_dir), coefficients=CoefficientSettings("projected_lambda"))
    save_adapter(bert_dir, tmp_path / "noun", target_modules=["pooler.dense"])
    state = tmp_path / "noun" / "adapter_model.safetensors"
    from safetensors.torch import load_file, save_file

    save_file({key.replace("pooler", "puller"): value for key, value in load_file(state).items()}, state)
    with pytest.raises(MergeError, match="puller"):
        AdaMerging(merge_of(pair, bert_dir, adapters=[pair.paths["praise"], str(tmp_path / "noun")]))


def test_an_update_that_is_not_finite_is_refused_before_training(bert_dir, pair, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(pair.paths["noun"], tmp_path / "noun")
    file = tmp_path / "noun" / "adapter_model.safetensors"
    state = load_file(file)
    next(iter(state.values()))[0, 0] = float("nan")
    save_file(state, file)
    learner = AdaMerging(merge_of(pair, bert_dir, adapters=[pair.paths["praise"], str(tmp_path / "noun")]))
    with pytest.raises(MergeError, match="nan|finite"):
        fit(learner, 2)


def test_labels_are_missed_and_losses_that_are_no_numbers_told_before_any_update(merge):
    """A supervised learner without labels, and a loss that overflows, end at once and change nothing."""
    learner = SuperMerge(merge)
    data = learner.task_objects["noun"].data
    plain = data.collate
    data.collate = lambda rows: {key: value for key, value in plain(rows).items() if key != "labels"}
    with pytest.raises(DataError, match=r"Task 'noun': the batch has no labels"):
        fit(learner, 2)
    assert learner.latest is None
    without = AdaMerging(merge)
    without.task_objects["noun"].data.collate = lambda rows: {k: v for k, v in plain(rows).items() if k != "labels"}
    fit(without, 2)
    assert without.latest is not None, "entropies need none"

    endless = AdaMerging(merge, initial=1e30, coefficients=CoefficientSettings(project=False))
    with pytest.raises(MergeError, match=r"loss of task 'praise' is (nan|inf)"):
        fit(endless, 2)
    assert endless.latest is None


def test_memory_that_is_out_is_told_with_what_helps_a7_40(merge):
    learner = AdaMerging(merge)

    def full(outputs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    learner.task_loss = full
    with pytest.raises(MergeError, match=r"Out of memory .* task 'praise' .*merge_once.*lower `batch_size`"):
        fit(learner, 2)


def test_smoothing_and_sums_of_cross_entropy_a7_51(merge):
    learner = SuperMerge(merge, loss=LossSettings(label_smoothing=0.2, reduction="sum"), optimizer=sgd(0.01))
    watch = Watch()
    fit(learner, 2, trainer={"callbacks": [watch]})
    learner.live.close()

    def smoothed(logits, labels):
        logs = logits.log_softmax(-1)
        return -(0.8 * logs[torch.arange(len(labels)), labels] + 0.2 * logs.mean(-1)).sum()

    oracle = Oracle(learner, smoothed)
    for record, before, batch in zip(watch.records, watch.before, batches(learner, 2), strict=True):
        losses = oracle.losses(before.double(), batch)
        assert list(record.losses.values()) == pytest.approx(losses.tolist(), rel=1e-5)
        assert record.counts == {"praise": 4, "noun": 4}
