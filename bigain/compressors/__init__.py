"""Token compressors: Lightning callbacks that hook the attention blocks of a denoiser."""

from __future__ import annotations

import inspect

from bigain.compressors.abm import ABM
from bigain.compressors.average_pool import AveragePool
from bigain.compressors.base import Compressor
from bigain.compressors.cam import CAM
from bigain.compressors.frequency_kv import FrequencyKV
from bigain.compressors.iekvd import IEKVD
from bigain.compressors.lgtm import LGTM
from bigain.compressors.sito import SiTo
from bigain.compressors.todo import ToDo
from bigain.compressors.tome import ToMe
from bigain.compressors.where import Where

__all__ = [
    "ABM",
    "CAM",
    "IEKVD",
    "LGTM",
    "AveragePool",
    "Compressor",
    "FrequencyKV",
    "SiTo",
    "ToDo",
    "ToMe",
    "Where",
    "methods",
]


def methods() -> dict[str, type[Compressor]]:
    """Return the shipped compressors by name, sorted."""
    classes = {name: value for name, value in sorted(globals().items()) if inspect.isclass(value)}
    return {
        name: value
        for name, value in classes.items()
        if issubclass(value, Compressor) and not inspect.isabstract(value)
    }
