"""No forward of a run waits for a GPU: nothing is read from it and nothing copied to it between two forwards.

On the meta device a tensor of the processor beside those of the device gives a copy away, and numbers cannot be read.
"""

import pytest
import torch
from cases import METHODS, build, every_network
from diffusers import DDIMScheduler, DDPMScheduler
from graphs import Refusing, tensors
from models import LATENTS, PROMPT_TOKENS, WIDTH, small_unet, tiny_dit
from torch.overrides import TorchFunctionMode

from bigain.backbones import DiT, StableDiffusion
from bigain.backbones.geometry import with_denoiser
from bigain.backbones.sharing import share
from bigain.compressors import LGTM, ImportanceMerging
from bigain.modules import DiffusionClassifier, DiffusionSampler

META = torch.device("meta")


class NoLists(TorchFunctionMode):
    """Refuses tensors of numbers from Python, which come to a GPU as copies; those of the meta device just appear."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        assert function not in (torch.tensor, torch.as_tensor) or isinstance(args[0], torch.Tensor)
        return function(*args, **(kwargs or {}))


class OnDevice(Refusing):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = super().__torch_dispatch__(function, types, args, kwargs)
        for value in tensors((args, kwargs, results)):
            # A single number travels with the kernel.
            assert value.device == META or not value.ndim, f"{function} with a tensor of the processor"
        return results


def backbone_of(network):
    kind, denoiser = (StableDiffusion, small_unet) if network == "unet" else (DiT, tiny_dit)
    backbone = with_denoiser(kind("tiny"), denoiser().to(META))
    backbone.set_schedule(DDPMScheduler(prediction_type="v_prediction"))
    return backbone


def conditions_of(network, number):
    size = (number, PROMPT_TOKENS, WIDTH) if network == "unet" else (number,)
    return torch.empty(size, device=META, dtype=torch.float32 if network == "unet" else torch.int64)


@pytest.mark.parametrize("case", METHODS, ids=lambda case: case["class"].__name__)
def test_forwards_of_a_classification(case):
    """Three pairs of an image and a trial under five classes, in two forwards; one case of each method."""
    network = "unet"
    module = DiffusionClassifier(backbone_of(network), rows_per_forward=8, bands=4)
    module.conditions, denoiser = conditions_of(network, 5), module.backbone.denoiser
    labels = torch.empty(3, 5, device=META, dtype=torch.int64)
    pairs = torch.empty(3, *LATENTS[network], device=META), labels[:, 0], labels[:, 0], labels
    with build(case).applied_to(denoiser), share(denoiser, module.conditions), torch.inference_mode():
        module._errors(*pairs)  # keeps the noise schedule and the keys of prompts
        with NoLists(), OnDevice():
            assert module._errors(*pairs).shape == (3, 5, 6)


@every_network
@pytest.mark.parametrize("guidance", [1, 4])
def test_forwards_of_a_generation(network, guidance):
    module = DiffusionSampler(backbone_of(network), scheduler=DDIMScheduler, guidance=guidance)
    module.null, denoiser = conditions_of(network, 1), module.backbone.denoiser
    items = torch.empty(3, *LATENTS[network], device=META), conditions_of(network, 3)
    keys, timestep = torch.empty(3, device=META, dtype=torch.int64), torch.empty((), device=META)
    compressor = LGTM(ratio=0.5) if guidance == 1 else ImportanceMerging(ratio=0.5)
    with compressor.applied_to(denoiser), share(denoiser), torch.inference_mode(), NoLists(), OnDevice():
        output, last = module._guided(*items, keys, timestep)
        assert module._guided(*items, keys, timestep, last)[0].shape == output.shape == items[0].shape


def test_what_waits_is_found():
    x = torch.empty(2, device=META)
    for wait in (
        lambda: x.sum().item(),
        lambda: x[x > 0],
        lambda: torch.arange(2).to(META),
        lambda: torch.tensor([2], device=META),
    ):
        with pytest.raises((AssertionError, RuntimeError)), NoLists(), OnDevice(), torch.inference_mode():
            wait()
