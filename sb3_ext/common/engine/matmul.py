"""How matrix products are computed: the fastest backend that is true fp32 on the machine, or bf16 on request."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch as th

# oneDNN's and MKL's fp32 products differ from float64 by less than 1e-6 of the largest entry, bf16 ones by 4e-3
FP32_MAX_ERROR = 1e-5
PRECISIONS = ("fp32", "bf16")


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
    try:
        before = th.get_float32_matmul_precision()
    except RuntimeError:
        return False
    th.set_float32_matmul_precision("medium")
    try:
        product = th.bmm(a, b)
    finally:
        th.set_float32_matmul_precision(before)
    exact = th.bmm(a.double(), b.double())
    return bool((product - exact).abs().max() / exact.abs().max() < FP32_MAX_ERROR)


def describe(device: th.device, precision: str) -> str:
    """A few words on what :func:`matmul_precision` sets."""
    if precision == "bf16":
        return "products in bf16"
    if device.type != "cpu":
        return "products in fp32"
    return "products in fp32 by oneDNN" if onednn_is_fp32() else "products in fp32 by MKL"


@contextmanager
def matmul_precision(device: th.device, precision: str) -> Iterator[None]:
    """
    Inside, matrix products have this precision.

    :param precision: ``"fp32"`` for the fastest backend that is true fp32, ``"bf16"`` for bfloat16 products with fp32
        sums (`torch.autocast`)
    """
    if precision == "bf16":
        # Its cache of converted weights would outlive their updates
        with th.autocast(device.type, th.bfloat16, cache_enabled=False):
            yield
        return
    try:
        before = th.get_float32_matmul_precision()
    except RuntimeError:  # the user has set `fp32_precision` of a backend, which PyTorch does not mix with this
        yield
        return
    th.set_float32_matmul_precision("medium" if device.type == "cpu" and onednn_is_fp32() else "highest")
    try:
        yield
    finally:
        th.set_float32_matmul_precision(before)
