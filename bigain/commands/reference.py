"""`bigain reference`: statistics of a folder of real images. What imports torch is imported when it runs."""

from __future__ import annotations

from pathlib import Path

from bigain.commands.parsing import Outcome
from bigain.errors import InputError
from bigain.runs.schema import Protocol


def reference(
    folder: Path,
    output: Path,
    *,
    protocol: Protocol = "pytorch-fid",
    weights: str | None = None,
    batch_size: int = 32,
    features: int = 10_000,
) -> Outcome:
    """Write statistics of real images, to which the distances of generated ones are measured.

    All images below the folder are taken at their native size, uncropped, in RGB. pytorch-fid can read the file, too.

    Args:
        folder: Images, also in folders below.
        output: File to write, .npz.
        protocol: How features are extracted; distances of different protocols do not compare.
        weights: Inception weights; by default from the environment and torch's cache.
        batch_size: Images per batch; statistics do not depend on it.
        features: Images, drawn at random, whose features are kept for kernel distance, precision and recall.

    Returns:
        What was written.

    Raises:
        InputError: If the weights are missing, or an image cannot be read.
    """
    if batch_size < 1 or features < 0:
        raise InputError(f"--batch-size must be at least 1 and --features at least 0, not {batch_size} and {features}")
    if output.suffix != ".npz":
        raise InputError(f"{output} must end in .npz")
    if not folder.is_dir():
        # Before torch is imported.
        raise InputError(f"no folder {folder}")
    from bigain.tasks.references import reference_of
    from bigain.tasks.scoring import extractor_of

    made = reference_of(folder, extractor_of(protocol, weights), batch_size, features)
    made.save(output)
    return Outcome(f"{output}: n = {made.moments.n}, {made.protocol}, weights sha256 {made.sha256}\n")
