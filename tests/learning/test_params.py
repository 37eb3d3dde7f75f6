"""Parameters of optimizers: names, defaults, ranges, what they make of a run (rows A7.1 to A7.39, A7.50 to A7.53)."""

from dataclasses import asdict

import pytest
import torch

from lit_wsl.errors import ConfigError
from lit_wsl.learning.live.engines import ENGINES
from lit_wsl.learning.options import LEARNERS, make_data, make_learner, make_plateau, prepared_merge, trainer_options
from lit_wsl.learning.params import PARAMS, read_params
from lit_wsl.merging.settings import LEARNERS as NAMES
from lit_wsl.merging.settings import OptimizerSpec

FREE = ("adamerging", "gradient", "supermerge")


def test_every_learner_has_parameters_and_a_name_in_configurations():
    assert set(PARAMS) == set(LEARNERS) == set(NAMES)


DEFAULTS = {
    "A7.1 variant": ("task_wise", "task_wise", "task_wise", None),
    "A7.2 plus_plus": (False, False, False, None),
    "A7.3 plus_plus_k": (20.0, 20.0, 20.0, None),
    "A7.3 plus_plus_lambda": (1.0, 1.0, 1.0, None),
    "A7.4 task_scope": ("classification", "classification", "all", None),
    "A7.6 steps": (500, 500, 500, 500),
    "A7.7 lr": (1e-3, 1e-3, 1e-3, 3e-4),
    "A7.8 betas": ((0.9, 0.999),) * 4,
    "A7.9 batch_size": (2, 2, 2, 1),
    "A7.10 init_lambda": (0.3, 0.3, 0.3, None),
    "A7.11 split": ("test", "validation", "validation", "validation"),
    "A7.12 coefficient_parameterization": ("projected_lambda", "projected_lambda", "tanh_alpha", None),
    "A7.13 project_coefficients": (True, True, True, None),
    "A7.13 coefficient_min": (0.0, 0.0, -1.0, None),
    "A7.13 coefficient_max": (1.0, 1.0, 1.0, None),
    "A7.14 normalize_coefficients": (False, False, False, None),
    "A7.16 merge_impl": ("merge_once",) * 4,
    "A7.17 delta_residency": ("cpu_stream",) * 4,
    "A7.18 dtype_compute": ("auto",) * 4,
    "A7.19 task_vector_dtype": ("auto",) * 4,
    "A7.20 model_dtype": ("auto",) * 4,
    "A7.21 force_cpu": (False,) * 4,
    "A7.22 use_autocast": (True,) * 4,
    "A7.23 allow_tf32": (True,) * 4,
    "A7.24 gradient_checkpointing": (True,) * 4,
    "A7.25 zero_dropout": (True,) * 4,
    "A7.26 gradient_accumulation_steps": (1, 1, 1, None),
    "A7.27 empty_cache_interval": (0,) * 4,
    "A7.28 logging_steps": (0, 0, 0, 10),
    "A7.29 progress_bar": (True,) * 4,
    "A7.30 dataloader_num_workers": (0,) * 4,
    "A7.30 dataloader_pin_memory": (True,) * 4,
    "A7.30 non_blocking_transfer": (True,) * 4,
    "A7.31 early_stopping_patience": (0, 0, 0, None),
    "A7.31 early_stopping_threshold": (0.0, 0.0, 0.0, None),
    "A7.31 rolling_window": (10,) * 4,
    "A7.32 min_optimizer_steps_before_early_stop": (0, 20, 20, None),
    "A7.32 early_stopping_warmup_steps": (0, 20, 20, None),
    "A7.33 restore_best_checkpoint": (False, False, False, True),
    "A7.34 eval_subset": (None,) * 4,
    "A7.35 sampling": (None,) * 4,
    "A7.36 log_alpha_grad_stats": (True,) * 4,
    "A7.36 log_label_token_stats": (True,) * 4,
    "A7.36 log_coefficients_during_training": (True,) * 4,
    "A7.36 log_layer_coefficients_full": (False,) * 4,
    "A7.37 save_metadata_pre_eval": (False,) * 4,
    "A7.37 print_coefficients_pre_eval": (False,) * 4,
    "A7.38 seed": (0,) * 4,
    "A7.50 entropy_temperature": (1.0, None, None, None),
    "A7.50 entropy_chunk_size": (4096, None, None, None),
    "A7.50 diversity": (0.0, None, None, None),
    "A7.50 require_valid_label_mask": (True, None, None, None),
    "A7.51 ce_task_weighting": (None, "baseline_normalized", "equal", None),
    "A7.51 ce_use_model_loss": (None, True, True, None),
    "A7.51 ce_baseline_source": (None, "single_task_eval", "single_task_eval", None),
    "A7.51 ce_baseline_batches": (None, 32, 32, None),
    "A7.51 ce_baseline_floor": (None, 1e-6, 1e-6, None),
    "A7.51 ce_multiplier_cap": (None, None, None, None),
    "A7.51 ce_ignore_index": (None, -100, -100, None),
    "A7.51 ce_label_smoothing": (None, 0.0, 0.0, None),
    "A7.51 ce_reduction": (None, "mean", "mean", None),
    "A7.51 enforce_validation_only_selection": (None, True, True, None),
    "A7.53 tau": (None, None, None, 0.1),
    "A7.53 regret_eps": (None, None, None, 1e-4),
    "A7.53 baseline_batches": (None, None, None, 64),
    "A7.53 init_mode": (None, None, None, "uniform"),
}
"""Defaults of adamerging, gradient, supermerge and regret_smoothmax; None where there is no such parameter."""


@pytest.mark.parametrize("row", DEFAULTS)
def test_defaults_of_the_table(row):
    field = row.split()[1]
    for kind, expected in zip(NAMES, DEFAULTS[row], strict=True):
        found = asdict(read_params(kind, {}))
        if expected is None:
            assert found.get(field) is None, kind
        else:
            assert found[field] == expected, kind


@pytest.mark.parametrize("kind", NAMES)
def test_other_names_of_parameters_are_those_of_every_learner(kind):
    assert read_params(kind, {"optimizer_steps": 7}).steps == 7
    for given in ({"optimizer_steps": 7, "steps": 8}, {"steps": 8, "optimizer_steps": 7}):
        assert read_params(kind, given).steps == 8, "the parameter's own name holds"


@pytest.mark.parametrize(
    ("given", "granularity", "prepared"),
    [
        ("task_wise", "task", False),
        ("layer_wise", "layer", False),
        ("tensor_wise", "tensor", False),
        ("Layer_Wise_Plus_Plus", "layer", True),
        ("plusplus", "task", True),
        ("plus_plus", "task", True),
        ("task_wise_plus_plus", "task", True),
    ],
)
def test_variants_a7_1(merge, given, granularity, prepared):
    params = read_params("adamerging", {"variant": given, "plus_plus_k": 30, "plus_plus_lambda": 0.4})
    assert (params.granularity, params.is_prepared) == (granularity, prepared)
    transforms = prepared_merge(merge, params).transforms
    assert [one.params for one in transforms] == ([{"k": 30.0, "lambda": 0.4}] if prepared else [])
    assert make_learner("adamerging", merge, params).coefficients.rows.granularity == granularity


def test_former_names_are_understood_a7_39():
    old = {"log_every": 3, "grad_accum_steps": 2, "early_stopping_min_delta": 0.1, "ties_k": 10, "ties_lambda": 0.5}
    params = read_params("gradient", OptimizerSpec("gradient", old).params)
    assert (params.logging_steps, params.gradient_accumulation_steps) == (3, 2)
    assert (params.early_stopping_threshold, params.plus_plus_k, params.plus_plus_lambda) == (0.1, 10.0, 0.5)
    assert read_params("adamerging", {"entropy_rolling_window": 4}).rolling_window == 4


FAULTS = [
    ("adamerging", {"stpes": 5}, "A7.39", "'stpes'.*Did you mean 'steps'"),
    ("gradient", {"entropy_temperature": 2.0}, "A7.39", "no parameter 'entropy_temperature'"),
    ("regret_smoothmax", {"variant": "layer_wise"}, "A7.39", "no parameter 'variant'"),
    ("adamerging", {"variant": "layerwise"}, "A7.1", "layerwise"),
    ("adamerging", {"plus_plus_k": 101}, "A7.3", "plus_plus_k <= 100"),
    ("adamerging", {"plus_plus": True, "merge_impl": "fused_lora_linear"}, "A7.2", "fused_lora_linear"),
    ("gradient", {"task_scope": "all"}, "A7.4", "task_scope"),
    ("adamerging", {"steps": 0}, "A7.6", "steps >= 1"),
    ("adamerging", {"steps": 1.5}, "A7.6", "int"),
    ("adamerging", {"steps": True}, "A7.6", "int"),
    ("adamerging", {"lr": 0.0}, "A7.7", "lr > 0"),
    ("adamerging", {"lr": "1e-3"}, "A7.7", "float"),
    ("adamerging", {"betas": [0.9]}, "A7.8", "betas"),
    ("adamerging", {"batch_size": 0}, "A7.9", "batch_size >= 1"),
    ("gradient", {"split": "test"}, "A7.11", "enforce_validation_only_selection"),
    ("adamerging", {"split": "dev"}, "A7.11", "validation"),
    ("regret_smoothmax", {"split": "train"}, "A7.11", "validation"),
    ("adamerging", {"gradient_accumulation_steps": 0}, "A7.26", ">= 1"),
    ("adamerging", {"empty_cache_interval": -1}, "A7.27", ">= 0"),
    ("adamerging", {"early_stopping_patience": -1}, "A7.31", ">= 0"),
    ("adamerging", {"delta_residency": "gpu"}, "A7.17", "cpu_stream"),
    ("gradient", {"ce_task_weighting": "by_hand"}, "A7.51", "manual"),
    ("gradient", {"ce_reduction": "max"}, "A7.51", "mean"),
    ("regret_smoothmax", {"init_mode": "from_lambda"}, "A7.53", "init_lambda_values"),
    ("regret_smoothmax", {"init_mode": "from_lambda", "init_lambda_values": [-1, 2]}, "A7.53", "negative"),
    ("adamerging", {"tasks": "emotion"}, "A7.5", "list of texts"),
    ("adamerging", {"sampling": 3}, "A7.35", "mapping"),
    ("adamerging", {"groups": ["query"]}, "A7.41", "variant: groups"),
]


@pytest.mark.parametrize(("kind", "given", "row", "message"), FAULTS)
def test_faults_are_named(kind, given, row, message):
    with pytest.raises(ConfigError, match=message):
        read_params(kind, given)


LATER = [
    ("adamerging", {"merge_impl": "fused"}, "A7.16", "merge_once|fused_linear"),
    ("adamerging", {"dtype_compute": "fp31"}, "A7.18", "fp32"),
    ("adamerging", {"task_vector_dtype": "int8"}, "A7.19", "task_vector_dtype"),
    ("adamerging", {"model_dtype": "int8"}, "A7.20", "model_dtype"),
    ("adamerging", {"coefficient_parameterization": "tanh_alpha"}, "A7.12", "sigmoid_alpha"),
    ("supermerge", {"coefficient_parameterization": "sigmoid_alpha"}, "A7.12", "tanh_alpha"),
    ("adamerging", {"coefficient_min": 2.0}, "A7.13", "coefficient_min"),
    ("adamerging", {"entropy_temperature": 0.0}, "A7.50", "entropy_temperature > 0"),
    ("adamerging", {"diversity": -1.0}, "A7.50", "diversity >= 0"),
    ("adamerging", {"entropy_chunk_size": -1}, "A7.50", "entropy_chunk_size"),
    ("gradient", {"ce_label_smoothing": 1.0}, "A7.51", "ce_label_smoothing < 1"),
    ("gradient", {"ce_manual_task_weights": {"praise": 1.0}}, "A7.51", "ce_task_weighting: manual"),
    ("gradient", {"ce_task_weighting": "manual", "ce_manual_task_weights": {"praise": 1.0}}, "A7.51", "noun"),
    ("gradient", {"ce_baseline_floor": 0.0}, "A7.51", "ce_baseline_floor"),
    ("gradient", {"ce_baseline_source": "file"}, "A7.51", "ce_baseline_file"),
    ("regret_smoothmax", {"tau": 0.0}, "A7.53", "tau > 0"),
    ("regret_smoothmax", {"init_mode": "from_lambda", "init_lambda_values": [1.0]}, "A7.53", "1"),
]


@pytest.mark.parametrize(("kind", "given", "row", "message"), LATER)
def test_faults_that_a_learner_sees_are_named(merge, kind, given, row, message):
    with pytest.raises(ConfigError, match=message):
        make_learner(kind, merge, read_params(kind, given))


def test_what_parameters_make_of_a_run(merge):
    """A7.7, A7.8, A7.9, A7.21, A7.22, A7.26, A7.29, A7.30."""
    given = {"lr": 0.5, "betas": [0.1, 0.2], "batch_size": 5, "steps": 7, "force_cpu": True, "progress_bar": False}
    params = read_params("adamerging", {**given, "gradient_accumulation_steps": 3, "early_stopping_patience": 2})
    learner = make_learner("adamerging", merge, params)
    optimizer = learner.configure_optimizers()
    assert isinstance(optimizer, torch.optim.Adam)
    assert (optimizer.defaults["lr"], optimizer.defaults["betas"]) == (0.5, (0.1, 0.2))
    assert optimizer.defaults["weight_decay"] == 0
    options = trainer_options(params)
    assert (options["accelerator"], options["precision"]) == ("cpu", "32-true")
    assert (options["accumulate_grad_batches"], options["enable_progress_bar"]) == (3, False)
    data = make_data(learner, params)
    seen = [batch for batch, _, _ in iter(data.train_dataloader())]
    assert len(seen) == 7
    assert {len(rows["labels"]) for batch in seen for rows in batch.values()} == {5}
    assert data.split == "test"
    assert make_plateau(params)._patience == 2
    assert learner.live.settings.model_dtype == "fp32"
    assert learner.live.settings.merge_impl in ENGINES


@pytest.mark.parametrize(
    ("parametrisation", "first"), [("projected_lambda", 0.3), ("sigmoid_alpha", 0.3), ("projected_lambda", 2.0)]
)
def test_first_coefficients_go_through_the_inverse_a7_10(merge, parametrisation, first):
    params = read_params("adamerging", {"init_lambda": first, "coefficient_parameterization": parametrisation})
    values = make_learner("adamerging", merge, params).coefficients.values()
    assert values[0] == pytest.approx([min(first, 1.0)] * 2, abs=1e-6)


def test_shares_of_regret_begin_as_given_a7_53(merge):
    params = read_params("regret_smoothmax", {"init_mode": "from_lambda", "init_lambda_values": [3, 1]})
    assert make_learner("regret_smoothmax", merge, params).coefficients.values()[0] == pytest.approx([0.75, 0.25])
    uniform = make_learner("regret_smoothmax", merge, read_params("regret_smoothmax", {}))
    assert uniform.coefficients.values()[0] == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("kind", FREE)
def test_what_is_exported_a7_15(merge, kind):
    """A7.15: coefficients as they are, no normalising; negative ones are allowed where there are some."""
    learner = make_learner(kind, merge, read_params(kind, {"init_lambda": 0.2}))
    learned = learner.learned()
    assert learned.method == "weighted_delta_n"
    assert learned.method_params["task_coefficients"] == pytest.approx([0.2, 0.2])
    assert learned.method_params["normalize_coefficients"] is False
    assert learned.optimizer is None


def test_normalised_coefficients_are_told_a7_14(merge, caplog):
    params = read_params("adamerging", {"normalize_coefficients": True, "init_lambda": 0.1})
    with caplog.at_level("WARNING"):
        learner = make_learner("adamerging", merge, params)
    assert learner.coefficients.values()[0] == pytest.approx([0.5, 0.5])
    assert any("sum" in record.message for record in caplog.records)
