"""Datasets in tests: set one up on a small tree, or return the error."""

import pytest

from bigain.errors import InputError


def prepared(kind, root, **settings):
    """A dataset after `setup`, which loads in this process."""
    data = kind(str(root), **{"num_workers": 0, "image_size": 16, **settings})
    data.setup("predict")
    return data


def refusal(kind, root, **settings):
    """The message of the InputError that `setup` raises."""
    with pytest.raises(InputError) as caught:
        prepared(kind, root, **settings)
    return str(caught.value)
