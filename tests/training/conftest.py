import pytest

from tests.tiny_bert import write_opinions, write_tiny_bert


@pytest.fixture(scope="session")
def bert_dir(tmp_path_factory):
    return write_tiny_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="session")
def opinions(tmp_path_factory):
    return write_opinions(tmp_path_factory.mktemp("opinions"))
