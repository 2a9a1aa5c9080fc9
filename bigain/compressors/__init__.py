"""Token compressors: Lightning callbacks that hook the attention blocks of a denoiser."""

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
]
