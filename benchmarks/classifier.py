"""Classification in this suite and in the plain way: one forward per image, trial and block of classes.

    python benchmarks/classifier.py                 # both embedded models, and SD 2.0's size with random weights
    python benchmarks/classifier.py --quick         # embedded models, few trials, 3 repetitions

Both evaluate the same classes at the same trials with the same noise, and must agree; published code works in the plain
way. Ours fills forwards over trials and images, computes what classes have in common once, and keeps keys and values of
prompts. Each round runs every way once; the results are medians of ratios within a round.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

import torch
from diffusers import DDPMScheduler
from rounds import rounds, spread_text
from torch import Tensor

from bigain.backbones import Backbone, DiT, StableDiffusion
from bigain.backbones.forward import row_keys
from bigain.backbones.geometry import with_denoiser
from bigain.backbones.sharing import share
from bigain.commands.bench.subject import random_denoiser
from bigain.commands.flops.model import CountedModel
from bigain.compressors import LGTM, Compressor
from bigain.data import ShapeTextures
from bigain.data.shapes import render_shapes
from bigain.diffusion.elimination import Elimination, staged_elimination
from bigain.diffusion.noising import prediction_error
from bigain.diffusion.trials import trial_grid, trial_keys, trial_noise
from bigain.modules import DiffusionClassifier
from bigain.tokens.randomness import stable_hash


@dataclass
class Case:
    """A network, images and settings of the classifier."""

    name: str
    backbone: Backbone
    latents: Tensor
    conditions: Tensor
    trials: tuple[int, ...]
    keep: tuple[int, ...]
    rows: int
    compressor: Compressor | None = None
    ways: tuple[str, ...] = ("plain", "forwards filled", "filled and shared")
    times: dict[str, list[float]] = field(default_factory=dict)

    @property
    def ids(self) -> list[str]:
        return [f"image {i}" for i in range(len(self.latents))]

    def classifier(self, shared: bool) -> DiffusionClassifier:
        module = DiffusionClassifier(self.backbone, self.trials, self.keep, rows_per_forward=self.rows, share=shared)
        module.conditions = self.conditions
        return module


def ours(case: Case, shared: bool) -> Elimination:
    with ExitStack() as undo:
        if shared:
            undo.enter_context(share(case.backbone.denoiser, case.conditions))
        return case.classifier(shared).classify(case.latents, case.ids, {})[0]


def plain(case: Case) -> Elimination:
    """Image by image, trial by trial, in blocks of classes."""
    module, grid = case.classifier(False), trial_grid(max(case.trials))
    results = []
    for latent, image_id in zip(case.latents, case.ids, strict=True):

        def errors_of(_: Tensor, trials: Tensor, labels: Tensor, x: Tensor = latent, name: str = image_id) -> Tensor:
            return torch.stack([one_trial(x, name, int(t), classes) for t, classes in zip(trials, labels, strict=True)])

        def one_trial(x: Tensor, name: str, trial: int, classes: Tensor) -> Tensor:
            key = trial_keys(torch.tensor([stable_hash(name)]), torch.tensor([trial]), 0)
            t, noise = torch.tensor([grid[trial]]), trial_noise(key, x.shape)
            noisy = case.backbone.parametrisation.add_noise(x[None], noise, t)
            errors = []
            for block in classes.split(case.rows):
                n = len(block)
                with row_keys(key.expand(n), block):
                    predicted = case.backbone.predict_target(
                        noisy.expand(n, -1, -1, -1), t.expand(n), case.conditions[block], "epsilon"
                    )
                errors.append(prediction_error(predicted, noise.expand(n, -1, -1, -1), "l2"))
            return torch.cat(errors)

        results.append(staged_elimination(errors_of, 1, len(case.conditions), module.stages, module.keep))
    survivors = tuple(torch.cat(stage) for stage in zip(*(result.survivors for result in results), strict=True))
    errors, predictions = ([getattr(result, name) for result in results] for name in ("errors", "prediction"))
    return Elimination(torch.cat(errors), survivors, torch.cat(predictions))


WAYS: dict[str, Callable[[Case], Elimination]] = {
    "plain": plain,
    "forwards filled": lambda case: ours(case, False),
    "filled and shared": lambda case: ours(case, True),
}


@torch.inference_mode()
def measure(case: Case, repetitions: int) -> int:
    """Time every way; return how many rows each evaluates."""
    with ExitStack() as undo:
        if case.compressor is not None:
            undo.enter_context(case.compressor.install(case.backbone.denoiser))
        results: dict[str, Elimination] = {}

        def run(name: str) -> None:
            results[name] = WAYS[name](case)

        case.times = rounds({name: partial(run, name) for name in case.ways}, repetitions)
        for name, result in results.items():
            assert torch.equal(result.prediction, results["plain"].prediction), name
            torch.testing.assert_close(result.errors, results["plain"].errors, rtol=0.02, atol=0, equal_nan=True)
    return int(results["plain"].errors.isfinite().sum())


def embedded(name: str, backbone: Backbone, images: int, quick: bool, compressed: bool) -> Case:
    backbone.load()
    data = ShapeTextures(images=images)
    latents = render_shapes(torch.arange(images), "test")[0] * 2 - 1
    space = data.class_space
    with torch.no_grad():
        conditions = backbone.conditions(space.prompts, space.model_labels)
    trials, keep = ((1, 3), (5, 1)) if quick else ((5, 20), (5, 1))
    compressor = LGTM(ratio=0.5) if compressed else None
    label = f"{name}, float32, {'LGTM 0.5' if compressed else 'no compression'}"
    return Case(label, backbone, latents, conditions, trials, keep, 64, compressor)


def sd2(compressed: bool) -> Case:
    """SD 2.0's U-Net with random weights, eight classes and one trial: one full forward on a CPU, all of it shared."""
    model = CountedModel.of("sd2", None)
    denoiser = random_denoiser(model.backbone.denoiser, torch.bfloat16, torch.device("cpu")).eval()
    backbone = with_denoiser(model.backbone, denoiser)
    backbone.set_schedule(DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012))
    draw = torch.Generator().manual_seed(0)
    latents = torch.randn(1, *model.latent, generator=draw)
    conditions = torch.randn(8, *model.condition.shape[1:], generator=draw).to(torch.bfloat16)
    compressor = LGTM(ratio=0.7) if compressed else None
    name = f"SD 2.0, bfloat16, {'LGTM 0.7' if compressed else 'no compression'}"
    return Case(name, backbone, latents, conditions, (1,), (1,), 8, compressor, ("plain", "filled and shared"))


def cases(quick: bool) -> list[Callable[[], Case]]:
    images = 1 if quick else 2
    models = (("embedded DiT", DiT("shapes_dit")), ("embedded U-Net", StableDiffusion("shapes_unet")))
    small = [partial(embedded, name, model, images, quick, on) for name, model in models for on in (False, True)]
    return small if quick else [*small, partial(sd2, False), partial(sd2, True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="embedded models, few trials, 3 repetitions")
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print("| network | way | evaluations/s | images/s | times faster than plain (lowest to highest) |")
    print("|---|---|---|---|---|")
    for make in cases(args.quick):
        case = make()
        rows = measure(case, 3 if args.quick else 5)
        for name, seconds in case.times.items():
            ratios = [plain / value for plain, value in zip(case.times["plain"], seconds, strict=True)]
            median = statistics.median(seconds)
            speed = f"{rows / median:.1f} | {len(case.ids) / median:.3f} | {spread_text(ratios, 2)}"
            print(f"| {case.name} | {name} | {speed} |", flush=True)


if __name__ == "__main__":
    main()
