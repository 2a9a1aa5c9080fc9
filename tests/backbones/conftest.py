"""Fixtures of the tests of models."""

import shutil

import pytest


@pytest.fixture
def copy(folders, tmp_path):
    """Copy one of a test's model folders to change it."""
    return lambda model: shutil.copytree(folders[model], tmp_path / model)
