"""Encoded images on disk, so that a second run neither decodes nor encodes them again."""

from __future__ import annotations

import hashlib
import logging
import uuid
from importlib.metadata import version
from pathlib import Path

import PIL
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bigain.data.preprocessing import PREPROCESSING
from bigain.errors import InputError

# Names what `Backbone.encode` does; changes when its arithmetic does.
_ENCODING = "posterior mean times scaling factor; 1"

_log = logging.getLogger(__name__)


class LatentCache:
    """A folder with one safetensors file per (image content, preprocessing, encoder).

    A changed image, size or VAE has another key, so nothing stale is ever read; what is no longer used may be deleted
    at any time. Files appear whole or not at all, so several processes may share a cache.
    """

    def __init__(self, folder: Path, image_size: int, encoder: str) -> None:
        """Set the cache up; the folder is made when something is written.

        Args:
            folder: Where it lives; one folder may serve many runs.
            image_size: Side of the preprocessed images in px.
            encoder: Digest of the VAE and of how it is run.
        """
        # Libraries decode and resize a little differently from version to version.
        libraries = [f"{name} {version(name)}" for name in ("torch", "torchvision", "diffusers")]
        libraries.append(f"pillow {PIL.__version__}")
        self._namespace = "\n".join([PREPROCESSING, _ENCODING, str(image_size), encoder, *libraries]).encode()
        self.folder = folder

    def key(self, content: bytes) -> str:
        """Key of an image file's content."""
        image = hashlib.blake2b(content, digest_size=16).digest()
        return hashlib.blake2b(self._namespace + image, digest_size=16).hexdigest()

    def read(self, key: str) -> Tensor | None:
        """The latent of a key, `(c, h, w)` float32; None if it is not cached, or damaged and to be written again."""
        path = self._path(key)
        try:
            latent = load_file(path)["latent"]
            if latent.dtype != torch.float32 or latent.ndim != 3 or not latent.isfinite().all():
                raise ValueError(f"{latent.dtype} of shape {tuple(latent.shape)}, or not finite")
            return latent
        except FileNotFoundError:
            return None
        except (SafetensorError, KeyError, OSError, ValueError) as error:
            _log.warning(f"warning: {path} in the latent cache is damaged ({error}); its image is encoded again")
            return None

    def write(self, key: str, latent: Tensor) -> None:
        """Store the latent of a key.

        Raises:
            InputError: If the folder cannot be written.
        """
        path = self._path(key)
        temporary = path.with_name(f"{key}.{uuid.uuid4().hex}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({"latent": latent.detach().to("cpu", torch.float32).contiguous()}, temporary)
            temporary.replace(path)
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"cannot write the latent cache {self.folder}: {error}; choose another latent_cache"
            ) from error

    def _path(self, key: str) -> Path:
        # Fifty thousand files in one folder are slow on network file systems.
        return self.folder / key[:2] / f"{key}.safetensors"
