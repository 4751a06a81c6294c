"""CUDA graphs: a whole loop of updates is launched by one call instead of by thousands of kernel launches."""

from collections.abc import Callable, Sequence
from typing import Any

import torch as th

# Runs before a capture, in which libraries choose their kernels
WARM_UP_RUNS = 3


def capture(function: Callable[[], Any], state: Sequence[th.Tensor]) -> tuple[Callable[[], None], Any]:
    """
    Record a function into a CUDA graph.

    :param function: reads and writes tensors at fixed addresses, without waiting for the device
    :param state: the tensors that it changes; they are as before afterwards
    :return: what runs the graph once more, and the function's result, which each run overwrites
    """
    before = [tensor.detach().clone() for tensor in state]
    try:
        stream = th.cuda.Stream()
        stream.wait_stream(th.cuda.current_stream())
        with th.cuda.stream(stream):
            for _ in range(WARM_UP_RUNS):
                function()
        th.cuda.current_stream().wait_stream(stream)
        graph = th.cuda.CUDAGraph()
        with th.cuda.graph(graph):
            result = function()
    finally:
        with th.no_grad():
            for tensor, old in zip(state, before, strict=True):
                tensor.copy_(old)
    return graph.replay, result
