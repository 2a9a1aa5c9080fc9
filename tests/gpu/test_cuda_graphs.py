"""CUDA graphs on a GPU: the errors of a run bit for bit, and what cannot be recorded.

Run them with `BIGAIN_GPU_TESTS=1 python -m pytest -n0 tests/gpu`.
"""

import pytest
import torch
from cases import build as build_case
from cases import every_case
from lightning.pytorch import Callback, Trainer
from models import forward, fresh, inputs, tiny_dit

from bigain.backbones import DiT, StableDiffusion, row_keys
from bigain.backbones.cuda_graphs import graphs_note, graphs_of, use_graphs
from bigain.compressors import IEKVD, LGTM, ToMe
from bigain.data import ShapeTextures
from bigain.modules import DiffusionClassifier

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class Keep(Callback):
    def on_predict_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        self.errors = getattr(self, "errors", []) + [record.errors for record in outputs]
        graphs = graphs_of(pl_module.backbone.denoiser)
        self.replays = graphs and graphs.replays
        text = getattr(pl_module.backbone, "text_encoder", None)
        assert text is None or text.device.type == "cpu"


def classified(backbone, compressor, precision):
    # 64 and 16 rows, then 32 and 8: all forwards are full, so that none is padded.
    module = DiffusionClassifier(backbone, trials=(1, 2), keep=(4, 1), rows_per_forward=8)
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    keep = Keep()
    callbacks = [keep] if compressor is None else [keep, compressor]
    trainer = Trainer(accelerator="gpu", devices=1, precision=precision, callbacks=callbacks, **options)
    trainer.predict(module, datamodule=ShapeTextures(images=6, batch_size=4), return_predictions=False)
    return keep


@pytest.mark.parametrize("precision", ["bf16-true", "32-true", "16-mixed"])
@pytest.mark.parametrize(("kind", "model"), [(DiT, "shapes_dit"), (StableDiffusion, "shapes_unet")])
def test_errors_are_equal_bit_for_bit(kind, model, precision):
    build = [lambda: None, lambda: LGTM(ratio=0.5), lambda: IEKVD(factor=2), lambda: ToMe(ratio=0.5)]
    for create in build if precision == "bf16-true" else build[1:2]:
        expected = classified(kind(model), create(), precision)
        actual = classified(kind(model, cuda_graph=True), create(), precision)
        assert expected.replays is None
        # 8 + 2 + 4 + 1 forwards, of which two, with and without dropped classes, are recorded.
        assert actual.replays >= 15 - 2
        assert actual.errors == expected.errors


def on_gpu(network):
    model = fresh(network).cuda()
    return model, [{name: value.cuda() for name, value in inputs(network, seed=seed).items()} for seed in (1, 2)]


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@every_case
def test_every_method_is_recorded_and_never_waits(case, network):
    """Without graphs, no forward may wait for the device either."""
    model, calls = on_gpu(network)
    keys = [torch.tensor(ids, device="cuda") for ids in ([3, 4, 5], [6, 7, 8])]
    with build_case(case).applied_to(model), torch.inference_mode():

        def run(given, key):
            with row_keys(key):
                return model(**given, return_dict=False)[0]

        expected = [run(*call) for call in zip(calls, keys, strict=True)]
        torch.cuda.set_sync_debug_mode("error")
        try:
            again = [run(*call) for call in zip(calls, keys, strict=True)]
        finally:
            torch.cuda.set_sync_debug_mode("default")
        use_graphs(model)
        actual = [run(*call) for _ in range(2) for call in zip(calls, keys, strict=True)]
        assert (graphs_note(model), graphs_of(model).replays) == ("1 recorded", 3)
    assert all(map(torch.equal, again, expected))
    assert all(map(torch.equal, actual, 2 * expected))


def test_a_forward_that_cannot_be_recorded_runs_as_before():
    model = tiny_dit().cuda()
    given = {name: value.cuda() for name, value in inputs("dit").items()}
    expected = forward(model, given)
    use_graphs(model)
    stream = torch.cuda.current_stream()
    handle = model.transformer_blocks[2].register_forward_hook(lambda module, args, output: print(float(output.sum())))
    with torch.inference_mode():
        for _ in range(3):
            assert torch.equal(model(**given, return_dict=False)[0], expected)
        assert graphs_note(model).startswith("none: ")
        print(graphs_note(model))
        assert torch.cuda.current_stream() == stream
        # What failed does no harm to the next recording.
        handle.remove()
        use_graphs(model)
        for _ in range(3):
            assert torch.equal(model(**given, return_dict=False)[0], expected)
    assert graphs_note(model) == "1 recorded"
