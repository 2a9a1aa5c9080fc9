"""Products in float32: accurate for every dtype, and without a trace on global settings."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from bigain.tokens.precision import products

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
def test_products_are_as_accurate_as_float32(dtype):
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(3, 70, 160, generator=generator).to(dtype)
    b = torch.randn(3, 50, 160, generator=generator).to(dtype).transpose(1, 2)
    exact = a.double() @ b.double()
    actual = products(a, b)
    assert actual.dtype == torch.float32
    # Rounding to bfloat16 anywhere would be off by about 0.05.
    assert (actual.double() - exact).abs().max() < 5e-5


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_global_precision_is_as_before(precision):
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        x = torch.randn(1, 8, 8).bfloat16()
        products(x, x)
        with pytest.raises(RuntimeError):
            products(x, torch.randn(1, 7, 7).bfloat16())
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_on_a_gpu_the_result_is_float32(dtype):
    with FakeTensorMode():
        a = torch.empty(2, 5, 4, device="cuda", dtype=dtype)
        b = torch.empty(2, 6, 4, device="cuda", dtype=dtype)
        actual = products(a, b.transpose(1, 2))
    assert (actual.dtype, actual.shape, actual.device.type) == (torch.float32, (2, 5, 6), "cuda")
