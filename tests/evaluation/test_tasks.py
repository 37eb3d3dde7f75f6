import pytest
import yaml

from lit_wsl.errors import ConfigError
from lit_wsl.evaluation import EncoderEvaluator, ModuleEvaluator, load_tasks, make_evaluator
from lit_wsl.evaluation.task import direction_of
from lit_wsl.evaluation.tasks import read_tasks
from lit_wsl.training.text import TextClassificationData

TEXTS = "lit_wsl.training.text.TextClassificationData"


def entry(opinions, **fields):
    return {"data": {"class_path": TEXTS, "init_args": {"task": str(opinions)}}, **fields}


def test_a_registry_from_a_file_a_mapping_and_a_mapping_with_tasks_are_one(bert_dir, opinions, tmp_path):
    registry = {"opinions": entry(opinions, metric="macro_f1")}
    (tmp_path / "tasks.yaml").write_text(yaml.safe_dump({"tasks": registry}))
    for source in (registry, {"tasks": registry}, tmp_path / "tasks.yaml", str(tmp_path / "tasks.yaml")):
        task = load_tasks(source, base=str(bert_dir))["opinions"]
        assert (task.name, task.metric, task.better, task.head) == ("opinions", "macro_f1", "max", None)
        assert isinstance(task.data, TextClassificationData)
        assert task.data.tokenizer == str(bert_dir)


def test_a_task_named_tasks_is_a_task(opinions):
    assert list(read_tasks({"tasks": entry(opinions)})) == ["tasks"]


def test_a_word_for_data_names_a_task_of_texts(bert_dir, opinions):
    task = load_tasks({"mine": {"data": str(opinions)}}, base=str(bert_dir), batch_size=7)["mine"]
    assert task.data.task == str(opinions)
    assert task.data.batch_size == 7
    assert task.metric == "accuracy"


@pytest.mark.parametrize(
    ("name", "metric", "better"),
    [
        ("asr", "wer", "min"),
        ("emotion", "macro_f1", "max"),
        ("kws", "macro_f1", "max"),
        ("intent", "accuracy", "max"),
        ("langid", "accuracy", "max"),
        ("speaker_id", "accuracy", "max"),
        ("speaker_ver", "accuracy", "max"),
        ("speech_qa", None, "max"),
        ("st", None, "max"),
    ],
)
def test_primary_metrics_of_known_tasks_a10_3(name, metric, better):
    spec = read_tasks({name: {"data": "x", "model": {"class_path": "m.M"}}})[name]
    assert spec.primary(name) == metric
    assert direction_of(spec.primary(name)) == better


def test_the_registry_overrides_metric_and_direction_a10_3(bert_dir, opinions):
    given = {"asr": entry(opinions, metric="loss"), "kws": entry(opinions, metric="accuracy", direction="min")}
    tasks = load_tasks({**given, "st": entry(opinions, metric="macro_f1")}, base=str(bert_dir))
    assert [(t.metric, t.better) for t in tasks.values()] == [
        ("loss", "min"),
        ("accuracy", "min"),
        ("macro_f1", "max"),
    ]
    assert read_tasks({"intent": entry(opinions, metric=None)})["intent"].primary("intent") is None


def test_only_the_named_tasks_are_made(bert_dir, opinions):
    registry = {"a": entry(opinions), "b": {"data": {"class_path": "no.Such"}}}
    assert list(load_tasks(registry, base=str(bert_dir), names=["a"])) == ["a"]


def test_heads(bert_dir, opinions, tmp_path):
    registry = {
        "a": entry(opinions, head="adapter", adapter="some/adapter"),
        "b": entry(opinions, head="x/head.safetensors"),
    }
    tasks = load_tasks(registry, base=str(bert_dir))
    assert str(tasks["a"].head) == "some/adapter/head.safetensors"
    assert str(tasks["b"].head) == "x/head.safetensors"


@pytest.mark.parametrize(
    ("registry", "message"),
    [
        ({}, "mapping of task names"),
        ({"a": {}}, "Task 'a' must be a mapping with `data`"),
        ({"a": {"data": "x", "metrik": "f1"}}, "Did you mean 'metric'"),
        ({"a": {"data": "x", "direction": "up"}}, "Task 'a': `direction` must be max or min"),
        ({"a": {"data": "x", "head": "adapter"}}, "needs an `adapter`"),
        ({"a": {"data": {"class_path": "no.Such"}}}, "task 'a', data"),
        ({"a": {"data": {"init_args": {"tsk": "x", "tokenizer": "y"}}}}, "tsk"),
        ({"a": {"data": {"init_args": {"tokenizer": "y"}}}}, "Give either `task` or"),
    ],
)
def test_wrong_entries_are_one_line(registry, message):
    with pytest.raises(ConfigError, match=message) as raised:
        load_tasks(registry)
    assert "\n" not in str(raised.value)


def test_unknown_names_and_files_are_named(opinions, tmp_path):
    with pytest.raises(ConfigError, match="Did you mean 'opinions'"):
        load_tasks({"opinions": entry(opinions)}, names=["opinion"])
    with pytest.raises(ConfigError, match=r"none\.yaml cannot be read"):
        load_tasks(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("tasks: [")
    with pytest.raises(ConfigError, match="is no YAML"):
        load_tasks(tmp_path / "bad.yaml")


def test_the_evaluator_follows_the_tasks(bert_dir, opinions):
    texts = load_tasks({"a": entry(opinions)}, base=str(bert_dir))
    assert isinstance(make_evaluator(texts, str(bert_dir)), EncoderEvaluator)
    with pytest.raises(ConfigError, match="give its `base`"):
        make_evaluator(texts, None)
    assert isinstance(make_evaluator(list(texts.values()), str(bert_dir)), EncoderEvaluator)
    model = {
        "class_path": "lit_wsl.training.classification.SequenceClassificationModule",
        "init_args": {"model": str(bert_dir), "labels": ["negative", "positive"]},
    }
    with_model = load_tasks({"a": entry(opinions, model=model, metric="acc")}, base=str(bert_dir))
    assert isinstance(make_evaluator(with_model, None), ModuleEvaluator)
    with pytest.raises(ConfigError, match="has no `model`"):
        make_evaluator([*with_model.values(), *texts.values()], str(bert_dir))


def test_an_evaluator_makes_the_tasks_of_a_registry_with_its_base(bert_dir, opinions, tmp_path):
    registry = {"a": {"data": {"init_args": {"task": str(opinions)}}}}
    made = make_evaluator(load_tasks(registry, base=str(bert_dir)), str(bert_dir))
    file = tmp_path / "tasks.yaml"
    file.write_text(yaml.safe_dump({"tasks": registry}))
    for source in (registry, file, str(file)):
        evaluator = make_evaluator(source, str(bert_dir))
        assert evaluator.scores(None, "test") == made.scores(None, "test")


def test_an_unknown_metric_is_refused_at_once(bert_dir, opinions):
    tasks = load_tasks({"a": entry(opinions, metric="acuracy")}, base=str(bert_dir))
    with pytest.raises(ConfigError, match="Did you mean 'accuracy'"):
        make_evaluator(tasks, str(bert_dir))
