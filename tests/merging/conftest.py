"""Small sources on one base, and methods that only tests know."""

import pytest

from lit_wsl.merging.method import METHODS, all_methods, register
from tests.merging.laws import save_adapters, save_models
from tests.merging.toys import SEEN, TOYS


@pytest.fixture
def toys():
    """The methods of ``toys.py``, registered for one test."""
    all_methods()
    for name, cls in TOYS.items():
        register(name)(cls)
    SEEN.clear()
    yield
    for name in TOYS:
        del METHODS[name]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A base and three tuned models."""
    return save_models(tmp_path_factory.mktemp("models"), 3)


@pytest.fixture(scope="module")
def adapters(models, tmp_path_factory):
    """Two adapters of the base, and the same updates as models."""
    return save_adapters(tmp_path_factory.mktemp("adapters"), models[0], 2)
