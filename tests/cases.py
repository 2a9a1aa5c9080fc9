"""One row per compressor and option, for the contract tests on all networks."""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib import import_module
from typing import Any

import pytest
from models import JOINT, NETWORKS, TODAY
from torch import nn

from bigain.compressors import (
    ABM,
    CAM,
    IEKVD,
    LGTM,
    AveragePool,
    Compressor,
    CoReDiT,
    FrequencyKV,
    ImportanceMerging,
    MosaicDiff,
    SiTo,
    ToDo,
    ToFu,
    ToMA,
    ToMe,
    Where,
)
from bigain.compressors.onlookers import Decision, Observation, Onlooker
from bigain.compressors.structural import EVERYWHERE
from bigain.diffusion.schedules import Linear
from bigain.tokens import scores


class Halved(MosaicDiff):
    """Keeps the first heads and channels of any weights, the same at all timesteps."""

    def __init__(self, *, ratio: float, where: Where = EVERYWHERE) -> None:
        super().__init__(ratio=ratio, where=where)
        self.boundaries = ()

    @property
    def sparsities(self) -> tuple[float, ...]:
        return (self.ratio,)

    def masks_of(self, denoiser: nn.Module) -> None:
        return None


ALL_MODULES = ["self_attn", "cross_attn", "mlp"]

CASES: list[dict[str, Any]] = [
    {"class": ToMe, "kwargs": {"ratio": 0.5}},
    {"class": ToMe, "kwargs": {"ratio": 0.75, "seed": 7}},
    {"class": ToMe, "kwargs": {"ratio": 0.5, "destination": "first"}},
    {"class": ToMe, "kwargs": {"ratio": 0.5, "destination": "redrawn"}},
    {"class": ToMe, "kwargs": {"ratio": 0.5, "mode": "prune"}},
    {"class": ToMe, "kwargs": {"ratio": 0.5, "proportional": True}},
    {"class": ToMe, "kwargs": {"ratio": 0.3, "cell": [1, 2]}},
    {"class": ToMe, "kwargs": {"ratio": 0.6, "cell": [3, 2]}},
    {"class": ToMe, "kwargs": {"ratio": 0.5, "modules": ["self_attn", "cross_attn"]}},
    {"class": ToMe, "kwargs": {"ratio": 0.5, "modules": ["mlp"]}},
    {"class": ToMe, "kwargs": {"ratio": 0.5, "metric": "block_input"}},
    {"class": ToFu, "kwargs": {"ratio": 0.5, "prune_below": 2}},
    {"class": LGTM, "kwargs": {"ratio": 0.5}},
    {"class": LGTM, "kwargs": {"ratio": 0.5, "destination": "released"}},
    {"class": LGTM, "kwargs": {"ratio": 0.5, "destination": "first"}},
    {"class": LGTM, "kwargs": {"ratio": 0.5, "destination": "random"}},
    {"class": LGTM, "kwargs": {"ratio": 0.5, "destination": "redrawn"}},
    {"class": LGTM, "kwargs": {"ratio": 0.7, "mode": "prune"}},
    {"class": LGTM, "kwargs": {"ratio": 0.5, "modules": ALL_MODULES}},
    {"class": LGTM, "kwargs": {"ratio": 0.5, "modules": ["self_attn", "mlp"], "metric": "attn_input"}},
    {"class": LGTM, "kwargs": {"ratio": 0.5, "score": scores.dft_centroid}},
    {"class": LGTM, "kwargs": {"ratio": 0.5, "source_quantile": 0.7}},
    {"class": CAM, "kwargs": {"inner": {"class": LGTM, "kwargs": {"ratio": 0.5}}}},
    {"class": CAM, "kwargs": {"inner": {"class": ToMe, "kwargs": {"ratio": 0.5, "metric": "attn_input"}}}},
    {"class": CAM, "kwargs": {"inner": {"class": SiTo, "kwargs": {"modules": ["mlp"]}}}},
    {"class": ABM, "kwargs": {"ratio": 0.5}},
    {"class": ABM, "kwargs": {"tau": 0.5, "aggregate": "std", "score": scores.l2_norm}},
    {"class": ABM, "kwargs": {"tau": 0.8, "quantile_of": "tokens"}},
    {"class": ABM, "kwargs": {"tau": 1.0, "aggregate": "mean"}},
    {"class": SiTo, "kwargs": {}},
    {"class": SiTo, "kwargs": {"ratio": 0.7, "noise_alpha": 0.0}},
    {"class": ToMA, "kwargs": {"ratio": 0.5, "cell": [4, 4]}},
    {"class": ToMA, "kwargs": {"ratio": 0.3, "temperature": 0.25}},
    {"class": CoReDiT, "kwargs": {"ratio": 0.4, "windows": [6, 3]}},
    {"class": CoReDiT, "kwargs": {"ratio": 0.5, "cell": [3, 4], "modules": ["mlp"]}},
    {"class": ImportanceMerging, "kwargs": {"ratio": 0.5}},
    {"class": ToDo, "kwargs": {"factor": 2}},
    {"class": ToDo, "kwargs": {"factor": 3}},
    {"class": AveragePool, "kwargs": {"factor": 2}},
    {"class": IEKVD, "kwargs": {"factor": 2}},
    {"class": IEKVD, "kwargs": {"factor": 3, "alpha": Linear(0.8, 1.2), "aligned": True}},
    {"class": FrequencyKV, "kwargs": {"ratio": 0.75, "keep": "high"}},
    {"class": FrequencyKV, "kwargs": {"ratio": 0.5, "keep": "low"}},
    {"class": Halved, "kwargs": {"ratio": 0.5}},
]
# Rows of external methods: a module with a list of the same form.
if elsewhere := os.environ.get("BIGAIN_CASES"):
    CASES += import_module(elsewhere).CASES


def build(case: dict[str, Any], where: Where | None = None) -> Compressor:
    """Build the compressor of a row, on different sites if `where` is given."""
    kwargs = dict(case["kwargs"])
    if "inner" in kwargs:
        kwargs["inner"] = build(kwargs["inner"], where)
    elif where is not None:
        kwargs["where"] = where
    compressor: Compressor = case["class"](**kwargs)
    return compressor


class Seen(Onlooker):
    """Records what an onlooker is shown."""

    def __init__(self) -> None:
        self.decisions: list[Decision] = []
        self.observations: list[Observation] = []

    def decided(self, decision: Decision) -> None:
        self.decisions.append(decision)

    def compressed(self, observation: Observation) -> None:
        self.observations.append(observation)


def _name(case: dict[str, Any]) -> str:
    def show(value: Any) -> str:
        if isinstance(value, dict):
            return _name(value)
        if isinstance(value, list):
            return "+".join(map(str, value))
        return getattr(value, "__name__", str(value))

    return "-".join([case["class"].__name__, *map(show, case["kwargs"].values())])


def _fits(case: dict[str, Any], network: str) -> bool:
    return network == "unet" or "cross_attn" not in case["kwargs"].get("modules", ())


def _crossed(cases: Iterable[dict[str, Any]], networks: Iterable[str]) -> list[Any]:
    fitting = ((case, network) for case in cases for network in networks if _fits(case, network))
    return [pytest.param(case, network, id=f"{_name(case)}-{network}") for case, network in fitting]


def _pairs(parameters: list[Any]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("case", "network"), parameters)


# The first row of each class, for what its options cannot change.
METHODS = list({case["class"]: case for case in reversed(CASES)}.values())[::-1]
# One row per mechanism for the networks with attention over text and image.
_ROWS = ("LGTM-0.5-self_attn+mlp-attn_input", "IEKVD-3-Linear")
_joint = _crossed((case for case in CASES if _name(case).startswith(_ROWS)), JOINT)

# Pruners decide on no tokens.
every_method = _pairs(_crossed([case for case in METHODS if case["class"] is not Halved], NETWORKS))
every_method_and_architecture = _pairs([*_crossed(METHODS, NETWORKS), *_joint])
every_case = _pairs(_crossed(CASES, NETWORKS))
every_case_and_architecture = _pairs([*_crossed(CASES, NETWORKS), *_joint])
# The main points also on networks whose blocks are those of a U-Net and a DiT, by method and by kind of method.
every_case_and_network = _pairs([*_crossed(CASES, NETWORKS), *_joint, *_crossed(METHODS, TODAY)])
_kinds = [case for case in METHODS if case["class"] in (LGTM, IEKVD)]
every_case_and_kind = _pairs([*_crossed(CASES, NETWORKS), *_joint, *_crossed(_kinds, TODAY)])
every_method_and_network = _pairs([*_crossed(METHODS, NETWORKS), *_joint, *_crossed(_kinds, TODAY)])
every_architecture = pytest.mark.parametrize("network", [*NETWORKS, *JOINT])
every_network = pytest.mark.parametrize("network", NETWORKS)
