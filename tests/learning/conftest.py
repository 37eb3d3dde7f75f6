"""The merges that every engine is tested on."""

import pytest

from tests.evaluation.pair import write_pair
from tests.learning.build import bert_case, llama_case
from tests.learning.learning import merge_of


@pytest.fixture(scope="module")
def pair(bert_dir, tmp_path_factory):
    """Two tiny tasks with an adapter each."""
    return write_pair(bert_dir, tmp_path_factory.mktemp("pair"))


@pytest.fixture
def merge(bert_dir, pair):
    """The merge of both adapters."""
    return merge_of(pair, bert_dir)


@pytest.fixture(scope="session")
def bert(tmp_path_factory):
    """Adapters of different rank on a classifier, with embeddings and biases."""
    return bert_case(tmp_path_factory.mktemp("bert-mixed"))


@pytest.fixture(scope="session")
def bert_linear(tmp_path_factory):
    """Adapters of linear layers alone."""
    return bert_case(tmp_path_factory.mktemp("bert-linear"), linear_only=True)


@pytest.fixture(scope="session")
def bert_tuned(tmp_path_factory):
    """Adapters beside whole models."""
    return bert_case(tmp_path_factory.mktemp("bert-tuned"), tuned=True)


@pytest.fixture(scope="session")
def llama_tied(tmp_path_factory, llama_dir):
    """A causal language model with an adapter on its one embedding."""
    return llama_case(tmp_path_factory.mktemp("llama-tied"), llama_dir)


@pytest.fixture(scope="session")
def llama_linear(tmp_path_factory, llama_dir):
    """The same without that."""
    return llama_case(tmp_path_factory.mktemp("llama-linear"), llama_dir, linear_only=True)


@pytest.fixture(scope="session")
def llama_tuned(tmp_path_factory, untied):
    """A causal language model with two embeddings, and a whole model among its sources."""
    return llama_case(tmp_path_factory.mktemp("llama-tuned"), untied, tuned=True)
