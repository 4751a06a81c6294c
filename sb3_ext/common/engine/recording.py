"""A function of tensors and of the networks that it closes over, recorded as a graph and compiled."""

from collections.abc import Callable, Sequence
from typing import Any

import torch as th
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

aten = th.ops.aten

INDUCTOR = {
    # Random numbers come from torch's generators as in eager mode (dropout)
    "fallback_random": True,
    # Believe the flags of /proc/cpuinfo: trying each instruction set in a process of its own takes a second
    "cpp.vec_isa_ok": True,
    # The engine looks recordings up by shape and passes contiguous tensors; checks take 5 % of a small update
    "size_asserts": False,
    "alignment_asserts": False,
}

Function = Callable[..., list[th.Tensor]]


class Recording:
    """
    The graph of a function, whose inputs are the tensors it closes over (weights, optimizer state) and its arguments.

    :param function: takes tensors, returns a list of tensors, and may change tensors that it closes over in place
    :param arguments: example arguments; their shapes, strides and types are those of every later call
    :param state: the tensors that the function changes; recording runs the function once and puts them back
    """

    def __init__(self, function: Function, arguments: Sequence[th.Tensor], state: Sequence[th.Tensor]):
        with th.no_grad(), th.random.fork_rng(devices=_cuda_devices(arguments)):
            before = [tensor.clone() for tensor in state]
            try:
                with _OneHotByComparison():
                    self.graph = make_fx(function, decomposition_table=DECOMPOSITIONS)(*arguments)
            finally:
                for tensor, old in zip(state, before, strict=True):
                    tensor.copy_(old)
        self.closure = _lift_closure(self.graph)

    def run(self, arguments: Sequence[th.Tensor]) -> list[th.Tensor]:
        """Interpret the graph."""
        with th.no_grad():
            return self.graph(*self.closure, *arguments)

    def compile(self, arguments: Sequence[th.Tensor]) -> Callable[[Sequence[th.Tensor]], list[th.Tensor]]:
        """
        The graph compiled by inductor, without dynamo: a recording needs no guards, and checking them takes as long as
        a tenth of a small update.
        """
        from torch._inductor import standalone_compile

        closure = self.closure
        with th.no_grad():
            compiled = standalone_compile(
                self.graph,
                [*closure, *arguments],
                dynamic_shapes="from_example_inputs",
                options={"config_patches": INDUCTOR},
            )

        def run(arguments: Sequence[th.Tensor]) -> list[th.Tensor]:
            with th.no_grad():
                return compiled(*closure, *arguments)

        return run


class _OneHotByComparison(TorchFunctionMode):
    """
    ``one_hot``, by which SB3 encodes discrete observations, looks at its values to check them, which no recording can
    hold.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is th.nn.functional.one_hot:
            return _one_hot(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _one_hot(tensor: th.Tensor, num_classes: int) -> th.Tensor:
    return (tensor.unsqueeze(-1) == th.arange(num_classes, device=tensor.device)).long()


def _lift_closure(graph: GraphModule) -> list[th.Tensor]:
    """Turn tensors that a graph holds as attributes into its first inputs, and return them."""
    nodes = [node for node in graph.graph.nodes if node.op == "get_attr"]
    inputs: dict[int, Any] = {}
    closure: list[th.Tensor] = []
    with graph.graph.inserting_before(next(iter(graph.graph.nodes))):
        for node in nodes:
            tensor = getattr(graph, node.target)
            if id(tensor) not in inputs:
                inputs[id(tensor)] = graph.graph.placeholder(f"closure_{len(closure)}")
                closure.append(tensor)
    for node in nodes:
        node.replace_all_uses_with(inputs[id(getattr(graph, node.target))])
        graph.graph.erase_node(node)
    for name in {node.target for node in nodes}:
        delattr(graph, name)
    graph.recompile()
    return closure


def _layer_norm(
    x: th.Tensor, shape: list[int], weight: th.Tensor | None, bias: th.Tensor | None, eps: float
) -> tuple[th.Tensor, ...]:
    # Inductor's own decomposition takes Welford's algorithm, which it vectorises badly: twice the time on a CPU
    dims = list(range(-len(shape), 0))
    mean = x.mean(dims, keepdim=True)
    centred = x - mean
    rstd = th.rsqrt(centred.square().mean(dims, keepdim=True) + eps)
    normed = centred * rstd
    if weight is not None:
        normed = normed * weight
    return normed if bias is None else normed + bias, mean, rstd


def _layer_norm_backward(
    grad: th.Tensor,
    x: th.Tensor,
    shape: list[int],
    mean: th.Tensor,
    rstd: th.Tensor,
    weight: th.Tensor | None,
    bias: th.Tensor | None,
    output_mask: list[bool],
) -> Any:
    if weight is not None or bias is not None:
        return NotImplemented  # not ours: inductor's own will do
    dims = list(range(-len(shape), 0))
    normed = (x - mean) * rstd
    projected = grad.mean(dims, keepdim=True) + normed * (grad * normed).mean(dims, keepdim=True)
    return rstd * (grad - projected), None, None


DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    aten.native_layer_norm.default: _layer_norm,
    aten.native_layer_norm_backward.default: _layer_norm_backward,
}


def _cuda_devices(tensors: Sequence[th.Tensor]) -> list[int]:
    return sorted({tensor.device.index or 0 for tensor in tensors if tensor.device.type == "cuda"})
