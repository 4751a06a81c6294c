"""Which backend multiplies matrices."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch as th

# oneDNN's and MKL's fp32 products differ from float64 by less than 1e-6 of the largest entry, bf16 ones by 4e-3
FP32_MAX_ERROR = 1e-5


@cache
def onednn_is_fp32() -> bool:
    """
    Whether ``torch.set_float32_matmul_precision("medium")``, which allows oneDNN to lower the precision, still gives
    true fp32 products on this CPU. It does without AMX, and on AMD, where MKL takes its AVX2 path, oneDNN is then
    twice as fast (ten products of 256x256 matrices on an EPYC: 0.71 against 1.66 ms, errors 7e-7 and 3e-7). With AMX
    the same setting may multiply in bf16.
    """
    generator = th.Generator().manual_seed(0)
    a, b = (th.randn(4, 256, 256, generator=generator) for _ in range(2))
    before = th.get_float32_matmul_precision()
    th.set_float32_matmul_precision("medium")
    try:
        product = th.bmm(a, b)
    finally:
        th.set_float32_matmul_precision(before)
    exact = th.bmm(a.double(), b.double())
    return bool((product - exact).abs().max() / exact.abs().max() < FP32_MAX_ERROR)


@contextmanager
def fast_fp32_matmul(device: th.device) -> Iterator[None]:
    """Inside, fp32 matrix products on the CPU run on the fastest backend that is true fp32."""
    if device.type != "cpu" or not onednn_is_fp32():
        yield
        return
    before = th.get_float32_matmul_precision()
    th.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        th.set_float32_matmul_precision(before)
