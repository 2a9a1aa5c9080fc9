"""Lines about the progress of a run."""

from types import SimpleNamespace as Namespace

import pytest
import torch

from bigain.tasks import progress
from bigain.tasks.progress import Progress


@pytest.mark.parametrize("processes", [1, 2])
def test_a_line_every_thirty_seconds_in_images(monkeypatch, capsys, processes):
    clock = iter([0.0, 10.0, 10.0, 35.0, 41.0, 41.0, 50.0])
    monkeypatch.setattr(progress, "time", Namespace(monotonic=lambda: next(clock)))
    trainer = Namespace(world_size=processes, is_global_zero=True, progress_bar_callback=None, precision="32-true")
    trainer.callbacks, trainer.default_root_dir = [], "runs/x"
    trainer.strategy = Namespace(root_device=Namespace(type="cpu"))
    items = [Namespace(image_id=str(i)) for i in range(100)]
    data = Namespace(name="D", class_space="ab", items=items, finished=frozenset(str(i) for i in range(-5, 20)))
    module = Namespace(data=data, backbone=Namespace(model="m"), evaluations_per_image=lambda classes: 10 * classes)
    callback = Progress()
    callback.setup(trainer, module, "predict")
    assert capsys.readouterr().err == "loading m\n"
    callback.on_predict_epoch_start(trainer, module)
    header = capsys.readouterr().err
    for words in ("D, 100 images, 2 classes", "20 per image, 2,000 in all", "runs/x", "done before  20 images"):
        assert words in header
    right, wrong = Namespace(labels=[1, 2], prediction=2), Namespace(labels=[1], prediction=2)
    for records in ([right, wrong], [right, right], [right]):
        callback.on_predict_batch_end(trainer, module, records, {"image_id": ["id"] * 10})
    callback.on_predict_epoch_end(trainer, module)
    about, first, last = ("", "30", "50") if processes == 1 else ("about ", "40", "80")
    seconds, left = (("1 s", "70 s"), ("1.4 s", "68 s")) if processes == 1 else (("0.5 s", "30 s"), ("0.68 s", "14 s"))
    assert capsys.readouterr().err.splitlines() == [
        f"{about}{first} of 100 images, top1 50.0 % of 2, {seconds[0]} per image, {seconds[1]} left",
        f"{about}{last} of 100 images, top1 80.0 % of 5, {left[0]} per image, {left[1]} left",
    ]


def test_the_header_says_that_a_processor_has_no_bfloat16(monkeypatch, capsys):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    data = Namespace(name="D", class_space="ab", items=[], finished=frozenset())
    module = Namespace(data=data, backbone=Namespace(model="m"), evaluations_per_image=lambda classes: 10)
    trainer = Namespace(
        world_size=1, is_global_zero=True, precision="bf16-true", callbacks=[], default_root_dir="runs/x"
    )
    trainer.strategy = Namespace(root_device=Namespace(type="cpu"))
    Progress().on_predict_epoch_start(trainer, module)
    assert "bf16-true: slow, torch has no fast bfloat16 for this processor; use --trainer" in capsys.readouterr().err
