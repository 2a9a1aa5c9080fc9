"""Encoded images on disk, so that a second run neither decodes nor encodes them again."""

from __future__ import annotations

import hashlib
import logging
import uuid
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bigain.data.reading import PREPROCESSING
from bigain.errors import InputError

# Describes `Backbone.encode`; changes with its arithmetic.
_ENCODING = "posterior mean times scaling factor; 1"

_log = logging.getLogger(__name__)


class LatentCache:
    """A folder with one safetensors file per (image content, preprocessing, encoder).

    A different image, size or VAE has a different key, so nothing stale is read; files may be deleted at any time.
    Files appear whole or not at all, so several processes may share a cache. Each holds its key and a digest: a
    changed or renamed one is reported and not used.
    """

    def __init__(self, folder: Path, image_size: int, encoder: str) -> None:
        """Set the cache up; the first `write` creates the folder. `encoder`: digest of the VAE and its precision."""
        # Versions of the libraries decode and resize slightly differently.
        libraries = [f"{name} {version(name)}" for name in ("torch", "torchvision", "diffusers", "pillow")]
        self._namespace = "\n".join([PREPROCESSING, _ENCODING, str(image_size), encoder, *libraries]).encode()
        self.folder = folder

    def read(self, digest: str) -> Tensor | None:
        """Return the latent of an image, `(c, h, w)` float32, by the hash of its file; None without a valid one."""
        path = self._path(digest)
        try:
            with safe_open(path, "pt") as file:
                metadata, latent = file.metadata(), file.get_tensor("latent")
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError) as error:
            reason = f"damaged ({error})"
        else:
            if metadata == _metadata(path.stem, latent):
                return latent
            reason = "not what was written for this image"
        _log.warning(f"warning: {path} in the latent cache is {reason}; its image is encoded again")
        return None

    def write(self, digest: str, latent: Tensor) -> None:
        """Store the latent of an image: see `read`. Raises an InputError if the folder cannot be written."""
        path = self._path(digest)
        temporary = path.with_suffix(f".{uuid.uuid4().hex}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            latent = latent.detach().to("cpu", torch.float32).contiguous()
            save_file({"latent": latent}, temporary, _metadata(path.stem, latent))
            temporary.replace(path)
        except (OSError, SafetensorError) as error:
            fix = "choose another latent_cache"
            raise InputError(f"cannot write the latent cache {self.folder}: {error}; {fix}") from error

    def _path(self, digest: str) -> Path:
        key = hashlib.blake2b(self._namespace + digest.encode(), digest_size=16).hexdigest()
        # Folders of fifty thousand files are slow on network file systems.
        return self.folder / key[:2] / f"{key}.safetensors"


def _metadata(key: str, latent: Tensor) -> dict[str, str]:
    """Return the key and a digest of type, shape and numbers of a latent, as stored beside it."""
    content = f"{latent.dtype} {tuple(latent.shape)} ".encode() + latent.flatten().view(torch.uint8).numpy().tobytes()
    return {"key": key, "digest": hashlib.blake2b(content, digest_size=16).hexdigest()}
