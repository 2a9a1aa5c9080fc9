"""The structural family: modules of blocks run with fewer weights, or not at all, by stages of the timestep."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from bigain.backbones.sites import Layout, Module, Site
from bigain.compressors.base import Compressor
from bigain.compressors.hooks import ContextGetter
from bigain.compressors.where import Where
from bigain.errors import InputError
from bigain.runs.files import replacing

# Tensors of a network's masks, by the names of `prunable` and a suffix of the method.
Masks = Mapping[str, Tensor]

# All strides of the known networks.
EVERYWHERE = Where(max_stride=8)


class StructuralPruner(Compressor):
    """Runs smaller modules instead of attentions and MLPs, chosen by the stage of the timestep.

    The replacements for each stage are made once, at installation: a forward chooses among them and copies no weight.
    Modules and their hooks stay in place. Subclasses implement `smaller`.

    Attributes:
        script: The script that writes the file of masks.
        masks: File of the masks; None only counts FLOPs.
        boundaries: Timesteps at which a stage ends and the next begins, ascending; stage 0 is that of timestep 0.
        tensors: During an installation, what `masks_of` returned for the network.
        active: Stages with a replacement in the network of the last installation.
    """

    script: ClassVar[str]
    tensors: Any
    # No token leaves.
    pads = True

    def __init__(self, masks: str | None, boundaries: Sequence[int], where: Where) -> None:
        super().__init__(where)
        if list(boundaries) != sorted(set(boundaries)) or not all(0 < end < 1000 for end in boundaries):
            raise InputError(f"boundaries must ascend within 1..999, not {list(boundaries)}")
        self.masks = masks
        self.boundaries = tuple(boundaries)

    @abstractmethod
    def smaller(self, site: Site, name: str, module: nn.Module, stage: int) -> nn.Module | None:
        """Return the module that runs at a stage instead of an attention or MLP; None if that runs itself.

        Args:
            site: The block.
            name: Of the module in the network.
            module: The attention or MLP, which stays as it is.
            stage: The stage.

        Raises:
            InputError: If the module has another structure, or the masks do not fit it.
        """

    def shared_value(self, timestep: int) -> int:
        """Return the stage of a timestep: rows of a forward share it."""
        return bisect_right(self.boundaries, timestep)

    def acts_at(self, timestep: int) -> bool:
        return self.shared_value(timestep) in self.active

    def check_module(self, module: Any) -> None:
        super().check_module(module)
        self._existing_masks()

    def _existing_masks(self) -> Path:
        path = Path(self.masks or "").expanduser()
        if not path.is_file():
            raise InputError(f"there are no masks at {self.masks}; make them with {self.script} (see --help)")
        return path

    def read_masks(self, denoiser: nn.Module | None = None) -> Masks:
        """Read the file of masks.

        Raises:
            InputError: If there is none, it is of another method, or was made for other weights than a network has.
        """
        path = self._existing_masks()
        try:
            with safe_open(path, "pt") as file:
                card = json.loads(file.metadata()["card"])
            tensors, method, expected = load_file(path), card["method"], card["weights_sha256"]
        except (SafetensorError, OSError, TypeError, LookupError, ValueError) as error:
            raise InputError(
                f"{path} is no file of masks ({error}); make it with {self.script} (see --help)"
            ) from error
        if method != type(self).__name__:
            raise InputError(f"{path} holds masks of {method}, not of {type(self).__name__}")
        if denoiser is None or next(denoiser.parameters()).is_meta:
            return tensors
        if (digest := weights_digest(denoiser)) != expected:
            raise InputError(
                f"{path} was made for other weights: SHA-256 {expected[:12]}..., and those of this network are "
                f"{digest[:12]}...; make it with {self.script} (see --help)"
            )
        return tensors

    def masks_of(self, denoiser: nn.Module) -> Masks | None:
        """Return the masks of a network; None on the meta device, as FLOPs do not depend on what is kept."""
        return None if next(denoiser.parameters()).is_meta else self.read_masks(denoiser)

    def install(self, denoiser: nn.Module) -> ExitStack:
        self.tensors, self.active = self.masks_of(denoiser), set[int]()
        try:
            return super().install(denoiser)
        finally:
            # The replacements hold the tensors that they need.
            del self.tensors

    def hook_site(self, layout: Layout, site: Site, context: ContextGetter, undo: ExitStack) -> None:
        for name, module in prunable([site]).items():
            replacements = [self.smaller(site, name, module, stage) for stage in range(len(self.boundaries) + 1)]
            self.active.update(stage for stage, replacement in enumerate(replacements) if replacement is not None)
            self._choose_by_stage(module, replacements, context, undo)

    def _choose_by_stage(
        self, module: Any, replacements: Sequence[nn.Module | None], context: ContextGetter, undo: ExitStack
    ) -> None:
        forwards, apply_to_module = [(replacement or module).forward for replacement in replacements], module._apply

        def forward(*args: Any, **kwargs: Any) -> Any:
            return forwards[self.value_in(context())](*args, **kwargs)

        def apply(function: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
            for replacement in filter(None, replacements):
                replacement._apply(function)
            return apply_to_module(function, recurse)

        # The hooks of the module run around its replacements. They are converted and moved with it without being its
        # children, so the digest of the network stays the same.
        module.forward, module._apply = forward, apply
        undo.callback(delattr, module, "forward")
        undo.callback(delattr, module, "_apply")


def prunable(sites: Collection[Site]) -> dict[str, nn.Module]:
    """Return attentions and MLPs by their names in the network, in execution order."""
    modules: dict[str, nn.Module] = {}
    for site in sites:
        names = {module: name for name, module in site.block.named_children()}
        for kind in get_args(Module):
            modules |= {f"{site.name}.{names[module]}": module for module in site.modules(kind)}
    return modules


def weights_digest(denoiser: nn.Module) -> str:
    """Return the SHA-256 of a network's weights in half precision, so that it does not depend on how they were read.

    Takes about a second per gigabyte.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(denoiser.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().to("cpu", torch.float16).contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def write_masks(path: Path, tensors: Masks, card: Mapping[str, Any]) -> None:
    """Write masks with a card: `method`, `weights_sha256`, `calibration`, and the settings of the method."""
    contiguous = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path, "choose another path") as file:
        file.write(save(contiguous, {"card": json.dumps(card)}))
