"""One event file that holds all the inspector shows, made anew whenever a run ends."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from bigain.runs.files import replacing
from bigain.runs.names import method, strength
from bigain.runs.summary import compressor_text

if TYPE_CHECKING:
    from collections.abc import Iterable

# Of the event file's name: tells it from the logger's own.
SUFFIX = ".inspector"
# Columns of the browser's table, the same for all runs: it takes them from the first run that it finds. The first five
# are seen at once, in the order of the alphabet; the others on request.
_SEEN = ("dataset", "factor", "method", "model", "ratio")
_TEXTS = ("compressor", "dataset", "method", "model", "precision", "protocol", "task")
_NUMBERS = ("factor", "images", "ratio", "seed", "tau")
_COSTS = ("flops/gflops_per_evaluation", "flops/reduction_percent", "timing/seconds_per_image")
_PROTOCOL = ("stages", "keep", "budget", "race", "timesteps", "loss", "scheduler", "steps", "guidance", "images")
# zlib's fastest level.
_PNG_LEVEL = 1


class Board:
    """Writes pictures to a folder and to event files, and numbers and text to the latter."""

    def __init__(self, folder: Path, logs: Sequence[Path], step: int) -> None:
        """Begin anew.

        Args:
            folder: Of the pictures.
            logs: Folders of event files; what an earlier end of the run left there is replaced.
            step: Of the pictures: images that are done.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._step = step
        earlier = [path for log in logs for path in log.glob(f"events.out.tfevents.*{SUFFIX}")]
        self._writers = [SummaryWriter(str(log), filename_suffix=SUFFIX) for log in logs]
        for path in [*earlier, *folder.glob("*.png")]:
            path.unlink(missing_ok=True)

    def picture(self, tag: str, image: Image.Image) -> None:
        """Show a picture under `group/name`; its file is `group_name.png`."""
        file = io.BytesIO()
        image.save(file, "PNG", compress_level=_PNG_LEVEL)
        content = file.getvalue()
        path = self._folder / f"{tag.replace('/', '_')}.png"
        with replacing(path) as written:
            written.write(content)
        shown = Summary.Image(
            height=image.height, width=image.width, colorspace=3, encoded_image_string=content
        )  # fmt: skip
        self._add([Summary(value=[Summary.Value(tag=tag, image=shown)])], self._step)

    def scalar(self, tag: str, value: float, step: int) -> None:
        """Show one number; with a timestep, stage or site for a step, several are a curve."""
        for writer in self._writers:
            writer.add_scalar(tag, value, step)

    def text(self, tag: str, markdown: str) -> None:
        """Show text."""
        for writer in self._writers:
            writer.add_text(tag, markdown, self._step)

    def settings(self, results: Mapping[str, Any]) -> None:
        """Put the run into the browser's table of settings and metrics."""
        # The numbers themselves are the scalars of these names.
        tags = [*(f"metrics/{name}" for name in results["metrics"]), *_COSTS]
        every = {**dict.fromkeys(_TEXTS, ""), **dict.fromkeys(_NUMBERS, 0.0)}
        columns, _, _ = hparams(every, dict.fromkeys(tags, 0.0))
        _, begun, ended = hparams(settings_of(results), {})
        plugin = columns.value[0].metadata.plugin_data
        content = HParamsPluginData.FromString(plugin.content)
        for column in content.experiment.hparam_infos:
            column.differs = column.name in _SEEN
        for metric in content.experiment.metric_infos:
            metric.display_name = metric.name.tag.partition("/")[2]
        plugin.content = content.SerializeToString()
        self._add([columns, begun, ended], None)

    def _add(self, summaries: Iterable[Summary], step: int | None) -> None:
        for summary in summaries:
            for writer in self._writers:
                file = writer.file_writer
                assert file is not None
                file.add_summary(summary, step)

    def close(self) -> None:
        """Let everything reach the files."""
        for writer in self._writers:
            writer.close()


def settings_of(results: Mapping[str, Any]) -> dict[str, Any]:
    """What tells a run from others, by the names of the columns; those that say nothing of it are left out."""
    compressors = results["compressors"]
    protocol = results["protocol"]
    found: dict[str, Any] = {
        "task": results["task"],
        "dataset": results["dataset"]["name"],
        "model": results["model"]["name"],
        "method": method(compressors),
        "compressor": " + ".join(map(compressor_text, compressors)) or "none",
        "images": float(results["dataset"]["images"]),
        "seed": float(protocol["seed"]),
        "precision": str(results["environment"]["precision"]),
        # A race has no stages, and stages are no race.
        "protocol": ", ".join(f"{name} {protocol[name]}" for name in _PROTOCOL if protocol.get(name) is not None),
    }
    how_much = strength(compressors)
    if how_much is not None:
        found[how_much[0]] = how_much[1]
    return found


def sites_table(sites: Sequence[Mapping[str, Any]]) -> str:
    """Tokens in and out per site, as Markdown."""
    lines = ["| site | name | tokens in | tokens out | left | compressor |", "|---|---|---|---|---|---|"]
    for site in sites:
        left = 100 * site["tokens_out"] / site["tokens_in"]
        lines.append(
            f"| {site['index']} | {site['name']} | {site['tokens_in']} | {site['tokens_out']} | {left:.0f} % | "
            f"{site['compressor']} |"
        )
    return "\n".join(lines)
