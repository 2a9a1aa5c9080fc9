"""The structural family: modules of blocks run with fewer weights, or not at all, by stages of the timestep."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from bigain.backbones.sites import Layout, Module, Site
from bigain.compressors.base import Compressor, ContextGetter
from bigain.compressors.where import Where
from bigain.errors import InputError
from bigain.runs.files import replacing
from bigain.tokens.grid import Grid

Forward = Callable[..., Any]

# All strides of the known networks.
EVERYWHERE = Where(max_stride=8)


@dataclass(frozen=True)
class Masks:
    """What is left out of a network, as a file holds it.

    Attributes:
        tensors: By the names of `prunable`, followed by what the method adds.
        card: `method`, `weights_sha256` (see `weights_digest`), `calibration`, and the settings of the method.
    """

    tensors: Mapping[str, Tensor]
    card: Mapping[str, Any]


class StructuralPruner(Compressor):
    """Runs something smaller instead of attentions and MLPs, chosen by the stage of the timestep.

    What runs at each stage is made once, at installation: a forward chooses among it and copies no weight. Modules and
    their hooks stay in place. Subclasses implement `variants` and `command`.

    Attributes:
        masks: File of the masks; None only counts FLOPs.
        boundaries: Timesteps at which a stage ends and the next begins, ascending; stage 0 is that of timestep 0.
    """

    # No token leaves.
    pads = True

    def __init__(self, masks: str | None, boundaries: Sequence[int], where: Where = EVERYWHERE) -> None:
        super().__init__(where)
        if list(boundaries) != sorted(set(boundaries)) or not all(0 < end < 1000 for end in boundaries):
            raise InputError(f"boundaries must ascend within 1..999, not {list(boundaries)}")
        self.masks = masks
        self.boundaries = tuple(boundaries)
        self._read: Masks | None = None

    @abstractmethod
    def command(self) -> str:
        """Return the command that makes the file of masks, for messages."""

    @abstractmethod
    def variants(
        self, site: Site, name: str, module: nn.Module, masks: Masks | None, undo: ExitStack
    ) -> Sequence[Forward | None]:
        """Return what runs at each stage instead of the forward of a module; None where the module itself does.

        Args:
            site: The block.
            name: Of the module in the network.
            module: An attention or an MLP; unchanged when `undo` closes. `follow` ties new layers to it.
            masks: Made for these weights; None on the meta device if there is no file.
            undo: Closes when the pruner is removed.

        Raises:
            InputError: If the module has another structure, or the masks do not fit it.
        """

    def shared_value(self, timestep: int) -> int:
        """Return the stage of a timestep: rows of a forward share it."""
        return bisect_right(self.boundaries, timestep)

    def tokens_out(self, site: Site, latent: Grid) -> int:
        return site.grid(latent).n

    def install(self, denoiser: nn.Module) -> ExitStack:
        on_meta = next(denoiser.parameters()).is_meta
        if not on_meta or (self.masks is not None and Path(self.masks).expanduser().is_file()):
            self._read = self._masks_for(denoiser)
        try:
            return super().install(denoiser)
        finally:
            # What is installed holds what it needs.
            self._read = None

    def _masks_for(self, denoiser: nn.Module) -> Masks:
        make = f"make them with `{self.command()}`"
        if self.masks is None:
            raise InputError(f"{type(self).__name__} needs the masks of this network: {make} and name the file")
        masks = read_masks(Path(self.masks).expanduser(), make)
        if masks.card.get("method") != type(self).__name__:
            raise InputError(f"{self.masks} holds masks of {masks.card.get('method')}, not of {type(self).__name__}")
        expected = masks.card.get("weights_sha256")
        if not next(denoiser.parameters()).is_meta and (digest := weights_digest(denoiser)) != expected:
            raise InputError(
                f"{self.masks} was made for other weights: SHA-256 {str(expected)[:12]}..., and those of this network "
                f"are {digest[:12]}...; {make}"
            )
        return masks

    def hook_site(self, layout: Layout, site: Site, context: ContextGetter, undo: ExitStack) -> None:
        for name, module in prunable([site]).items():
            if "forward" in vars(module):
                raise InputError(f"the forward of {name} is replaced, perhaps by offloading; end that before pruning")
            variants = self.variants(site, name, module, self._read, undo)
            if any(variant is not None for variant in variants):
                self._dispatch(module, [variant or module.forward for variant in variants], context, undo)

    def _dispatch(
        self, module: nn.Module, forwards: Sequence[Forward], context: ContextGetter, undo: ExitStack
    ) -> None:
        def forward(*args: Any, **kwargs: Any) -> Any:
            return forwards[self.value_in(context())](*args, **kwargs)

        # Hooks run around it as before.
        _replace(module, "forward", forward, undo)


def prunable(sites: Collection[Site]) -> dict[str, nn.Module]:
    """Return attentions and MLPs by their names in the network, in execution order."""
    return dict(pair for site in sites for pair in _modules_of(site))


def _modules_of(site: Site) -> Iterator[tuple[str, nn.Module]]:
    names = {module: name for name, module in site.block.named_children()}
    for kind in get_args(Module):
        yield from ((f"{site.name}.{names[module]}", module) for module in site.modules(kind))


def follow(module: nn.Module, layers: Sequence[nn.Module], undo: ExitStack) -> None:
    """Convert and move layers with a module, of which they are not part: its weights and their digest stay the same."""
    apply: Callable[..., nn.Module] = module._apply

    def apply_to_all(function: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        for layer in layers:
            layer._apply(function)
        return apply(function, recurse)

    _replace(module, "_apply", apply_to_all, undo)


def _replace(module: nn.Module, method: str, function: Callable[..., Any], undo: ExitStack) -> None:
    own = vars(module).get(method)
    setattr(module, method, function)
    undo.callback(*((delattr, module, method) if own is None else (setattr, module, method, own)))


def weights_digest(denoiser: nn.Module) -> str:
    """Return the SHA-256 of a network's weights in half precision, so that it does not depend on how they were read.

    Takes about a second per gigabyte.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(denoiser.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().to("cpu", torch.float16).contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def write_masks(path: Path, masks: Masks) -> None:
    """Write masks with their card, or raise an InputError."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in masks.tensors.items()}
    with replacing(path, "choose another path") as file:
        file.write(save(tensors, {"card": json.dumps(masks.card)}))


def read_masks(path: Path, make: str) -> Masks:
    """Read masks; raise an InputError, which ends with how to `make` them, if that is impossible."""
    if not path.is_file():
        raise InputError(f"there are no masks at {path}; {make}")
    try:
        with safe_open(path, "pt") as file:
            return Masks({name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["card"]))  # noqa: SIM118
    except (SafetensorError, OSError, TypeError, LookupError, ValueError) as error:
        raise InputError(f"{path} is no file of masks ({error}); {make}") from error
