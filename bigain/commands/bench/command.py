"""`bigain bench`: arguments and output; what imports torch is imported when it runs."""

from __future__ import annotations

import sys
from json import dumps
from typing import Literal

from bigain.commands.parsing import Outcome
from bigain.errors import InputError


def bench(
    *options: str,
    model: str = "sd2",
    image_size: int | None = None,
    batch: int = 2,
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16",
    device: str | None = None,
    threads: int | None = None,
    repetitions: int = 5,
    compile: Literal["none", "whole", "regional"] = "none",
    channels_last: bool = False,
    json: bool = False,
) -> Outcome:
    """Time one forward of a network without compression and with each of several compressors, in turns.

    Reports how much of the saving that FLOPs promise is real: (1 - measured ratio) / (1 - promised ratio).

    Args:
        *options: --compressor NAME, the import path of a class, or a file; may be given several times, each followed by
            its arguments: --compressor LGTM --compressor.ratio 0.7 --compressor IEKVD --compressor.factor 2. Left out:
            LGTM and ABM at ratio 0.7 and IEKVD at factor 2.
        model: sd2, dit_xl_2_512, a shipped configuration (sd21, shapes_dit, ...), a diffusers folder or a hub id. A
            folder with weights is loaded; otherwise weights are random, and only sizes are downloaded.
        image_size: Side of the images in px; by default what the model was trained on.
        batch: Rows of a forward.
        dtype: Of weights and activations.
        device: cpu, cuda, cuda:1, ...; by default a GPU if there is one.
        threads: Of a CPU; by default torch's.
        repetitions: Measured rounds; in each, every method runs in turn, in changing order.
        compile: whole: the network as one graph; regional: each transformer block separately.
        channels_last: Use this memory format for convolutions.
        json: Print one JSON object instead of text; progress goes to stderr.

    Returns:
        Complete if every method could be measured.

    Raises:
        InputError: If an argument cannot work.
    """
    for name, value in (("batch", batch), ("threads", threads), ("repetitions", repetitions)):
        if value is not None and value < 1:
            raise InputError(f"{name} must be at least 1, not {value}")
    from bigain.commands.bench.run import run
    from bigain.commands.bench.text import as_text
    from bigain.commands.predict import silence_libraries

    silence_libraries()
    result = run(
        options,
        _tell,
        model=model,
        image_size=image_size,
        batch=batch,
        dtype=dtype,
        device=device,
        threads=threads,
        repetitions=repetitions,
        compile=compile,
        channels_last=channels_last,
    )
    complete = all(row["error"] is None for row in (result["baseline"], *result["methods"]))
    return Outcome(dumps(result, indent=2) + "\n" if json else as_text(result), complete)


def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
