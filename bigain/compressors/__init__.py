"""Token compressors: Lightning callbacks that hook the attention blocks of a denoiser."""

from __future__ import annotations

import inspect

from bigain.compressors.abm import ABM as ABM
from bigain.compressors.average_pool import AveragePool as AveragePool
from bigain.compressors.base import Compressor as Compressor
from bigain.compressors.cam import CAM as CAM
from bigain.compressors.coredit import CoReDiT as CoReDiT
from bigain.compressors.dipgo import DiPGO as DiPGO
from bigain.compressors.feature_cache import FeatureCache as FeatureCache
from bigain.compressors.frequency_kv import FrequencyKV as FrequencyKV
from bigain.compressors.iekvd import IEKVD as IEKVD
from bigain.compressors.importance_merging import ImportanceMerging as ImportanceMerging
from bigain.compressors.lgtm import LGTM as LGTM
from bigain.compressors.mosaicdiff import MosaicDiff as MosaicDiff
from bigain.compressors.onlookers import Onlooker as Onlooker
from bigain.compressors.sito import SiTo as SiTo
from bigain.compressors.todo import ToDo as ToDo
from bigain.compressors.tofu import ToFu as ToFu
from bigain.compressors.toma import ToMA as ToMA
from bigain.compressors.tome import ToMe as ToMe
from bigain.compressors.where import Where as Where


def methods() -> dict[str, type[Compressor]]:
    """Return the shipped compressors by name, sorted."""
    classes = [value for value in globals().values() if inspect.isclass(value) and issubclass(value, Compressor)]
    return {
        kind.__name__: kind for kind in sorted(classes, key=lambda kind: kind.__name__) if not inspect.isabstract(kind)
    }
