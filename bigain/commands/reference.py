"""`bigain reference`: statistics of real images. What imports torch is imported when it runs."""

from __future__ import annotations

import sys
from pathlib import Path

from bigain.commands.configs import find_config
from bigain.commands.parsing import Outcome, create
from bigain.errors import InputError
from bigain.runs.schema import Protocol


def reference(
    paths: list[Path],
    *options: str,
    split: str | None = None,
    protocol: Protocol = "pytorch-fid",
    weights: str | None = None,
    features: int = 10_000,
) -> Outcome:
    """Write statistics of real images, to which the distances of generated ones are measured.

    Images are taken at their native size, uncropped, in RGB. pytorch-fid can read the file, too.

    Args:
        paths: A folder, of which all images count, also in folders below, and the file to write, .npz. With --data,
            only the file, before that option.
        *options: Take the images that a run on a dataset evaluates: --data imagenet100.yaml --data.root /data,
            or a class and its arguments. All arguments: --data.help ImageNet100
        split: Split of this dataset, the same as --data.split.
        protocol: How features are extracted; distances of different protocols do not compare.
        weights: Inception weights, by default from the environment and torch's cache; for dinov2 and clip, the folder
            of the model.
        features: Images, drawn at random, whose features are kept for kernel distance, precision and recall.

    Returns:
        What was written.

    Raises:
        InputError: If the weights are missing, or an image cannot be read.
    """
    *folders, output = paths
    options = (*options, *([f"--data.split={split}"] if split else []))
    if len(folders) != (not options):
        arguments = " ".join(map(str, [*paths, *options]))
        raise InputError(f"give FOLDER OUT.npz, or OUT.npz --data with a file or class, not {arguments}")
    if output.suffix != ".npz":
        raise InputError(f"{output} must end in .npz")
    if folders and not folders[0].is_dir():
        # Checked before torch is imported.
        raise InputError(f"no folder {folders[0]}")
    from bigain.data import EvalDataModule
    from bigain.tasks.references import images_below, images_of, reference_of
    from bigain.tasks.scoring import extractor_of

    if folders:
        images, source = images_below(folders[0]), folders[0].resolve().name
    else:
        data = create(EvalDataModule, "data", find_config(options), "bigain reference")  # type: ignore[type-abstract]
        if data is None:
            raise InputError(f"{' '.join(options)} names no dataset; add --data with a file or class")
        images, source = images_of(data), " ".join(filter(None, (data.name, getattr(data, "split", ""))))
    if output.exists():
        sys.stderr.write(f"warning: {output} exists and will be replaced\n")
    statistics = reference_of(images, source, extractor_of(protocol, weights), features)
    statistics.save(output)
    return Outcome(f"{output}: n = {statistics.moments.n}, {statistics.protocol}, weights sha256 {statistics.sha256}\n")
