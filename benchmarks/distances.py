"""How often intervals of distances cover the mean distance of fresh sets, and how well the bias is known.

    python benchmarks/distances.py > benchmarks/results/distances.md
    python benchmarks/distances.py --pairs > benchmarks/results/paired_distances.md

Sets of generated images are drawn from a population of features again and again. Populations: ShapeTextures, blurred or
not, through the embedded extractor; and normal features of 512 dimensions with falling variances, as Inception's have.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch
from torchvision.transforms.v2.functional import gaussian_blur

from bigain.data.images import quantise
from bigain.data.shapes import Split, render_shapes
from bigain.metrics.base import Z95, jackknife_error
from bigain.metrics.frechet import frechet_distance, frechet_leave_one_out
from bigain.metrics.kernel import kernel_leave_one_out
from bigain.metrics.reference import Features, Moments
from bigain.metrics.shape_features import ShapeFeatures

HEADER = ("distance", "population", "features", "n", "mean", "standard deviation", "error / deviation", "covered %")
HEADER += ("bias", "estimated bias")
PAIRED = ("distance", "n", "mean", "standard deviation", "error / deviation", "covered %", "unpaired / paired error")
# Images of a population and of the reference, and features in the reference for KID.
POPULATION, FEATURES = 8192, 1500


def shapes(split: Split, sigma: float) -> Features:
    """Return features of ShapeTextures images, blurred by `sigma` px. `(n, 64)`."""
    extractor, rows = ShapeFeatures(), []
    for indices in torch.arange(POPULATION).split(256):
        images = render_shapes(indices, split)[0] * 2 - 1
        rows.append(extractor(quantise(gaussian_blur(images, [7, 7], [sigma]) if sigma else images, "png")))
    return torch.cat(rows).numpy()


def normal(seed: int, shift: float) -> Features:
    """Return normal features whose k-th variance falls with 1/k, shifted and stretched by `shift`. `(n, 512)`."""
    draw, directions = np.random.default_rng(seed), np.random.default_rng(99).standard_normal((2, 512))
    deviations = np.arange(1, 513) ** -0.5
    stretched = draw.standard_normal((POPULATION, 512)) * np.exp(shift * directions[0]) + shift * directions[1]
    return (stretched * deviations).astype(np.float32)


def row(name: str, population: str, d: int, n: int, sets: list[tuple[float, float, float]], limit: float) -> str:
    """Return a line of the table from the value, its standard error and its bias in each set."""
    values, errors, biases = np.transpose(sets)
    mean, deviation = values.mean(), values.std(ddof=1)
    covered = 100 * np.mean(np.abs(values - mean) <= Z95 * errors)
    cells = (f"{mean:.4g}", f"{deviation:.2g}", f"{errors.mean() / deviation:.2f}", f"{covered:.1f}")
    bias = (f"{mean - limit:.2g}", f"{biases.mean():.2g}") if name == "frechet" else ("0", "")
    return f"| {' | '.join((name, population, str(d), str(n), *cells, *bias))} |"


def simulate(sets: int, sizes: tuple[int, ...], print_row: Callable[[str], None]) -> None:
    """Print the rows of all populations."""
    clean, many = shapes("val", 0), normal(0, 0)
    populations = {
        "shapes, blurred": (shapes("test", 1), clean),
        "shapes, alike": (shapes("test", 0), clean),
        "normal": (normal(1, 0.2), many),
    }
    for population, (generated, real) in populations.items():
        reference, real_features, d = Moments.of([real]), real[:FEATURES], real.shape[1]
        limit = frechet_distance(Moments.of([generated]), reference)
        for n in sizes:
            draw = np.random.default_rng([n, *population.encode()])
            rows: dict[str, list[tuple[float, float, float]]] = {"frechet": [], "kid": [], "kid, both sampled": []}
            for _ in range(sets):
                x, y = (points[draw.integers(POPULATION, size=n)] for points in (generated, real))
                value, left_out = frechet_leave_one_out(x, reference)
                rows["frechet"].append((value, jackknife_error(left_out), (n - 1) * float((left_out - value).mean())))
                value, left_out = kernel_leave_one_out(x, real_features)
                rows["kid"].append((value, jackknife_error(left_out), 0))
                (value, left_out), (_, left_out_y) = kernel_leave_one_out(x, y), kernel_leave_one_out(y, x)
                error = float(np.hypot(jackknife_error(left_out), jackknife_error(left_out_y)))
                rows["kid, both sampled"].append((value, error, 0))
            for name, results in rows.items():
                print_row(row(name, population, d, n, results, limit))


def simulate_pairs(sets: int, sizes: tuple[int, ...], print_row: Callable[[str], None]) -> None:
    """Print how well the paired error of the difference of two runs is known: images blurred by 0.8 and by 1 px."""
    first, second, real = shapes("test", 1), shapes("test", 0.8), shapes("val", 0)
    reference, real_features = Moments.of([real]), real[:FEATURES]
    for n in sizes:
        draw = np.random.default_rng([n, 1])
        rows_by_distance: dict[str, list[tuple[float, float, float]]] = {"frechet": [], "kid": []}
        for _ in range(sets):
            chosen = draw.integers(POPULATION, size=n)
            for name, rows in rows_by_distance.items():
                sides = [
                    frechet_leave_one_out(points[chosen], reference)
                    if name == "frechet"
                    else kernel_leave_one_out(points[chosen], real_features)
                    for points in (first, second)
                ]
                (a, left_out_a), (b, left_out_b) = sides
                errors = jackknife_error(left_out_a), jackknife_error(left_out_b)
                rows.append((a - b, jackknife_error(left_out_a - left_out_b), float(np.hypot(*errors))))
        for name, rows in rows_by_distance.items():
            differences, paired, unpaired = np.transpose(rows)
            deviation = differences.std(ddof=1)
            covered = 100 * np.mean(np.abs(differences - differences.mean()) <= Z95 * paired)
            cells = (f"{differences.mean():.3g}", f"{deviation:.2g}", f"{paired.mean() / deviation:.2f}")
            print_row(
                f"| {' | '.join((name, str(n), *cells, f'{covered:.1f}', f'{(unpaired / paired).mean():.1f}'))} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=200, help="sets of each size")
    parser.add_argument("--sizes", type=int, nargs="+", default=(50, 200, 500, 1000), help="images of a set")
    parser.add_argument("--pairs", action="store_true", help="of differences between two runs on the same images")
    options = parser.parse_args()
    if options.pairs:
        print(f"`python benchmarks/distances.py --pairs --sets {options.sets}`: differences of two runs on n images.\n")
        print(f"| {' | '.join(PAIRED)} |\n|{'---|' * len(PAIRED)}")
        simulate_pairs(options.sets, tuple(options.sizes), lambda line: print(line, flush=True))
        return
    print(f"`python benchmarks/distances.py --sets {options.sets}`: 95 % intervals over sets of n images. Covered: the")
    print("interval holds the mean distance of all sets of this size.\n")
    print(f"| {' | '.join(HEADER)} |\n|{'---|' * len(HEADER)}")
    simulate(options.sets, tuple(options.sizes), lambda line: print(line, flush=True))


if __name__ == "__main__":
    main()
