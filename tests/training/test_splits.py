import pytest

from lit_wsl.training.tasks.splits import link_near_duplicates, normalised, select_rows, split_of, split_ranks
from lit_wsl.training.tasks.task import SPLITS, Row


def test_texts_that_differ_in_case_and_punctuation_are_the_same():
    assert normalised("Hello,  World!") == normalised("hello world")


def test_linking_joins_shared_runs_and_chains_them():
    texts = ["a b c d", "x b c d y", "b c d y z", "q r s"]
    assert link_near_duplicates(texts, ["g4", "g3", "g2", "g1"], words=3) == ["g2", "g2", "g2", "g1"]


def test_short_texts_are_linked_when_equal():
    assert link_near_duplicates(["Yes!", "yes", "no"], ["a", "b", "c"], words=8) == ["a", "a", "c"]


def test_groups_stay_whole_under_linking():
    assert link_near_duplicates(["one", "two", "two"], ["doc1", "doc1", "doc2"], words=3) == ["doc1"] * 3


@pytest.mark.parametrize("count", [3, 4, 5, 11, 120])
def test_every_class_reaches_every_split(count):
    splits = split_ranks(count)
    assert len(splits) == count
    assert set(splits) == set(SPLITS)


def test_two_groups_cannot_fill_three_splits():
    with pytest.raises(ValueError, match="count >= 3"):
        split_ranks(2)


def test_split_shares_are_near_their_targets():
    splits = [split_of(f"group {index}") for index in range(4000)]
    assert splits.count("train") / 4000 == pytest.approx(0.65, abs=0.03)
    assert splits.count("validation") / 4000 == pytest.approx(0.12, abs=0.03)


def test_selection_drops_ambiguous_and_repeated_texts():
    rows = [Row("Good!", "a", "train"), Row("good", "b", "test"), Row("fine", "a", "train"), Row("Fine.", "a", "test")]
    assert select_rows(rows) == {"train": [Row("fine", "a", "train")], "validation": [], "test": []}


def test_selection_balances_classes_within_the_size():
    rows = [Row(f"a {index}", "a", "validation") for index in range(1000)]
    rows += [Row(f"b {index}", "b", "validation") for index in range(200)]
    rows += [Row(f"c {index}", "c", "validation") for index in range(30)]
    labels = [row.label for row in select_rows(rows)["validation"]]
    assert {label: labels.count(label) for label in "abc"} == {"a": 135, "b": 135, "c": 30}
