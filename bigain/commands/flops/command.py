"""`bigain flops`: arguments and output; what imports torch is imported when it runs."""

from __future__ import annotations

from bigain.commands.configs import find_config
from bigain.commands.parsing import Outcome, create
from bigain.errors import InputError


def flops(
    *options: str, model: str = "sd2", image_size: int | None = None, match: str | None = None, json: bool = False
) -> Outcome:
    """Count the FLOPs of one network evaluation at batch 1, without weights: total, by category, and the reduction.

    2 FLOPs per multiply-add; matrix products, attention and convolutions.

    Args:
        *options: --compressor NAME, the import path of a class, or a file; left out, the model is counted without
            compression. Its arguments: --compressor.ratio 0.7, --compressor.where.blocks "[1,2,3]",
            --compressor.inner LGTM. All arguments of a class: --compressor.help NAME
        model: Name of shipped sizes (sd2, dit_xl_2_512, pixart_512, sdxl, sd3_medium, flux_dev), a shipped
            configuration (sd21, shapes_dit, ...), a diffusers folder (weights are not needed) or a hub id.
        image_size: Side of the images in px; by default what the model was trained on.
        match: Find the ratio or factor at which each method, or the given compressor, reduces FLOPs by this much: 10%
        json: Print one JSON object instead of text.

    Raises:
        InputError: If an argument cannot work.
    """
    percent = None if match is None else _percent(match)
    from tqdm import tqdm

    from bigain.commands.flops.model import CountedModel, count_text
    from bigain.commands.flops.search import every_method, find_match, match_text, with_starting_values
    from bigain.commands.predict import silence_libraries
    from bigain.compressors import Compressor

    silence_libraries()
    arguments = find_config(options) if percent is None else with_starting_values(find_config(options))
    compressor = create(Compressor, "compressor", arguments, "bigain flops")  # type: ignore[type-abstract]
    if compressor is None and options and not any(option.startswith("--compressor") for option in options):
        raise InputError(f"{' '.join(options)} sets arguments of a compressor; add --compressor with its class or file")
    counted = CountedModel.of(model, image_size)
    if percent is None:
        return Outcome(count_text(counted, compressor, json))
    compressors = every_method() if compressor is None else [compressor]
    matches, left_out = [], {}
    for method in tqdm(compressors, "methods", leave=False, disable=None):
        try:
            matches.append(find_match(counted, method, percent))
        except InputError as error:
            if compressor is not None:
                raise
            # Pruners do not know the structure of every network.
            left_out[type(method).__name__] = str(error)
    return Outcome(match_text(counted, matches, left_out, percent, json))


def _percent(text: str) -> float:
    try:
        percent = float(text.strip().removesuffix("%"))
    except ValueError:
        percent = 0.0
    if not 0 < percent < 100:
        raise InputError(f"match must be a percentage above 0 and below 100, such as 10%, not {text!r}")
    return percent
