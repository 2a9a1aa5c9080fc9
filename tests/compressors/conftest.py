"""Every test leaves the shared models and the registry of owned blocks unchanged."""

import pytest
import torch
from models import JOINT, NETWORKS, TODAY, shared

from bigain.compressors.base import _owners


@pytest.fixture(autouse=True)
def _nothing_left():
    yield
    owned = len(_owners)
    modules = [module for network in (*NETWORKS, *JOINT, *TODAY) for module in shared(network).modules()]
    hooked = [module for module in modules if module._forward_hooks or module._forward_pre_hooks]
    if owned or hooked:
        # Do not let later tests fail as well.
        _owners.clear()
        shared.cache_clear()
    assert not owned
    assert not hooked


@pytest.fixture
def bfloat16_by_default():
    torch.set_default_dtype(torch.bfloat16)
    yield
    torch.set_default_dtype(torch.float32)
