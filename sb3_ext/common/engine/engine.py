"""Runs the updates of an algorithm: eagerly, compiled, or as CUDA graphs."""

import getpass
import hashlib
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.utils import get_parameters_by_name
from torch import nn
from torch.utils._triton import has_triton

from sb3_ext.common.engine import adam, graphs
from sb3_ext.common.engine.matmul import PRECISIONS, describe, matmul_precision
from sb3_ext.common.engine.recording import Recording
from sb3_ext.common.engine.trees import flatten, unflatten

T = TypeVar("T")

BACKENDS = ("auto", "eager", "compiled", "cudagraph")

# What decides whether compiling pays back: seconds to compile on two cores with an empty and with a filled cache of
# inductor, the share of a run that may be spent on it, and what an update takes in eager mode on two cores
COLD_COMPILE_SECONDS, WARM_COMPILE_SECONDS = 20.0, 3.0
MAX_COMPILE_SHARE = 0.05
EAGER_OVERHEAD_SECONDS, EAGER_FLOPS_PER_SECOND = 2e-3, 200e9
# Forward pass, gradient of the activations and of the weights: a multiplication and an addition each
FLOPS_PER_PARAMETER_AND_ROW = 6

# As in PyTorch's clip_grad_norm_
CLIP_EPSILON = 1e-6

# Further batch sizes and patterns of updates, of which there may be many, run eagerly
MAX_RECORDINGS = 8


class UpdateEngine:
    """
    Runs update functions of an algorithm by a backend:

    - ``"eager"``: plain PyTorch.
    - ``"compiled"``: each update function is recorded once with its weights, optimizer state and arguments as inputs,
      compiled by inductor, and called.
    - ``"cudagraph"``: a whole loop of updates is captured on the GPU and launched at once.
    - ``"auto"``: ``"cudagraph"`` on a GPU; on a CPU ``"compiled"`` where the planned updates take so long that
      compiling is at most 5 % of them, else ``"eager"``.

    An update function takes batches and noise (tensors, None, tuples, dicts), computes losses of the networks, calls
    :meth:`minimize` and :meth:`polyak`, and returns tensors. It draws no random numbers and does not look at the
    tensors' values, so that all backends give the same numbers. Weights and optimizer state stay where SB3 has them:
    saving, loading and schedules work between any two calls.

    :param policy: module with all networks
    :param optimizers: all optimizers, Adam or AdamW for any backend but the eager one
    :param constants: numbers that update functions use (discount factor, ...); with others they are recorded anew
    :param backend: one of the above
    :param precision: ``"fp32"`` or ``"bf16"`` matrix products
    :param verbose: 1 to print the choice
    :param as_sb3: leave fp32 products to PyTorch in eager mode, for updates that are SB3's to the last bit
    :param has_loops: whether the algorithm calls :meth:`loop`; without, there is nothing to capture
    :raises ValueError: an unknown backend or precision
    """

    def __init__(
        self,
        policy: BasePolicy,
        optimizers: Sequence[th.optim.Optimizer],
        constants: Callable[[], tuple],
        backend: str = "auto",
        precision: str = "fp32",
        verbose: int = 0,
        as_sb3: bool = False,
        has_loops: bool = True,
    ):
        check_arguments(backend, precision)
        self.policy = policy
        self.device = policy.device
        self.optimizers = list(optimizers)
        self.constants = constants
        self.requested, self.precision, self.verbose = backend, precision, verbose
        self.as_sb3, self.has_loops = as_sb3, has_loops
        self.backend, self._compiles, self._is_planned = "eager", False, False
        self._recordings: dict[Any, Callable[[list[th.Tensor]], Any]] = {}
        self._rates = {id(optimizer): th.zeros((), device=self.device) for optimizer in self.optimizers}
        self._is_recording = False
        self._recorded_with: tuple | None = None
        self._closures: list[list[th.Tensor]] = []
        self._state: list[th.Tensor] = []
        self._seen: list[dict] = [{} for _ in self.optimizers]
        self._pairs: dict[tuple[int, int], tuple[list, list]] = {}
        self._graphs: dict[Any, Callable[[list[th.Tensor]], Any]] = {}
        self._batch_size = 0
        self._cannot_compile = self._cannot_capture = False

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        # Recordings are of this model's weights: a copied model makes an engine of its own
        return None

    def runs(self, policy: BasePolicy, optimizers: Sequence[th.optim.Optimizer]) -> bool:
        """Whether these are the networks and optimizers that this engine was made for."""
        return (
            self.policy is policy
            and len(self.optimizers) == len(optimizers)
            and all(mine is other for mine, other in zip(self.optimizers, optimizers, strict=True))
        )

    # --- For algorithms ----------------------------------------------------------------------------------------------

    def plan(self, n_updates: int, batch_size: int) -> None:
        """
        Choose the backend for updates to come, and say which and why.

        :param n_updates: number of updates of all networks
        :param batch_size: rows of each batch
        """
        self._batch_size = batch_size
        self.backend, self._compiles, reason = self._choose(n_updates, batch_size)
        self._is_planned = True
        if self.verbose > 0:
            words = {"eager": "eagerly", "compiled": "compiled", "cudagraph": "as CUDA graphs"}[self.backend]
            how = " of compiled updates" if self.backend == "cudagraph" and self._compiles else ""
            products = "products as in SB3" if self._leaves_products_alone() else describe(self.device, self.precision)
            print(f"Updates run {words}{how} ({reason}), {products}")

    @contextmanager
    def session(self) -> Iterator[None]:
        """Around calls of :meth:`run` and :meth:`loop`: takes up changed learning rates, loaded state and constants."""
        if not self._is_planned:  # `train` without `learn`
            self.plan(n_updates=0, batch_size=0)
        for optimizer in self.optimizers:
            self._rates[id(optimizer)].fill_(optimizer.param_groups[0]["lr"])
        if self.backend != "eager":
            self._refresh()
        if not self._compiles:  # compiled updates have the mode in them
            self.policy.set_training_mode(True)
        with nullcontext() if self._leaves_products_alone() else matmul_precision(self.device, self.precision):
            yield

    def _leaves_products_alone(self) -> bool:
        return self.as_sb3 and self.backend == "eager" and self.precision == "fp32"

    def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call an update function."""
        if not self._compiles or self._is_recording:
            return function(*arguments)
        leaves, spec = flatten(arguments)
        leaves = [leaf.contiguous() for leaf in leaves]
        key = (function.__name__, spec, *[(leaf.shape, leaf.dtype) for leaf in leaves])
        compiled = self._recordings.get(key)
        if compiled is None:
            if len(self._recordings) >= MAX_RECORDINGS:
                self.policy.set_training_mode(True)
                return function(*arguments)
            compiled = self._compile(function, leaves, spec)
            if compiled is None:
                return function(*arguments)
            self._recordings[key] = compiled
        return compiled(leaves)

    def loop(self, function: Callable[..., T], pattern: tuple, *arguments: Any) -> T:
        """
        Call a function that makes a loop of updates, ``function(pattern, *arguments)``.

        :param pattern: hashable, everything but tensors that the loop depends on
        :return: its result, to be read before the next call
        """
        if self.backend != "cudagraph":
            return function(pattern, *arguments)
        leaves, spec = flatten(arguments)
        key = (function.__name__, pattern, spec, *[(leaf.shape, leaf.dtype) for leaf in leaves])
        replay = self._graphs.get(key)
        if replay is None:
            if len(self._graphs) >= MAX_RECORDINGS:
                return function(pattern, *arguments)
            try:
                replay = self._graphs[key] = self._capture(function, pattern, arguments)
            except RuntimeError as error:  # an extractor that waits for the device, a full memory
                self.backend = "compiled" if self._compiles else "eager"
                self._cannot_capture = True
                warnings.warn(f"Capturing a CUDA graph failed ({error}): updates run {self.backend}.", stacklevel=2)
                return function(pattern, *arguments)
        return replay(leaves)

    def minimize(self, loss: th.Tensor, optimizer: th.optim.Optimizer, max_grad_norm: float | None = None) -> None:
        """One step of an optimizer on a scalar loss of its parameters."""
        self.step(optimizer, self.gradients(loss, optimizer), max_grad_norm)

    def gradients(
        self, loss: th.Tensor, optimizer: th.optim.Optimizer, only: Collection[nn.Parameter] | None = None
    ) -> list[th.Tensor | None]:
        """
        :param loss: scalar
        :param only: parameters to find the gradients of; all that learn where it is None
        :return: one for each of the optimizer's parameters, None where the loss does not depend on it
        """
        if id(optimizer) not in self._rates:
            raise ValueError(f"{optimizer} is not among the optimizers of this engine: return it from `_optimizers`.")
        parameters = _parameters(optimizer)
        chosen = {id(parameter) for parameter in (parameters if only is None else only) if parameter.requires_grad}
        learning = [parameter for parameter in parameters if id(parameter) in chosen]
        # Of no other networks that the loss goes through, as `backward` would
        found = iter(th.autograd.grad(loss, learning, allow_unused=True))
        grads = [next(found) if id(parameter) in chosen else None for parameter in parameters]
        # The fused step goes through memory in order and takes no notice of strides; second derivatives come transposed
        return [None if grad is None else grad.contiguous() for grad in grads]

    def step(
        self, optimizer: th.optim.Optimizer, grads: Sequence[th.Tensor | None], max_grad_norm: float | None = None
    ) -> None:
        """
        One step of an optimizer.

        :param grads: of each of its parameters; those with None stay as they are
        :param max_grad_norm: all gradients together are scaled down to this norm
        """
        if self.backend == "eager":
            parameters = _parameters(optimizer)
            for parameter, grad in zip(parameters, grads, strict=True):
                parameter.grad = grad
            if max_grad_norm is not None:
                nn.utils.clip_grad_norm_(parameters, max_grad_norm)
            optimizer.step()
            return
        if max_grad_norm is not None:
            norm = th.stack([grad.square().sum() for grad in grads if grad is not None]).sum().sqrt()
            scale = (max_grad_norm / (norm + CLIP_EPSILON)).clamp(max=1.0)
            grads = [None if grad is None else grad * scale for grad in grads]
        adam.adam_(optimizer, grads, self._rates[id(optimizer)], fused=not self._is_recording)

    @th.no_grad()
    def polyak(self, online: nn.Module, target: nn.Module, tau: float) -> None:
        """
        Move target weights towards the online ones in one pass over the memory; running statistics of batch
        normalisation are copied.

        :param tau: share of the way, in [0, 1]
        """
        key = (id(online), id(target))
        if key not in self._pairs:
            weights = zip(online.parameters(), target.parameters(), strict=True)
            statistics = zip(
                *(get_parameters_by_name(module, ["running_"]) for module in (online, target)), strict=True
            )
            self._pairs[key] = list(weights), list(statistics)
        averages, copies = self._pairs[key]
        for online_weight, target_weight in averages:
            target_weight.lerp_(online_weight, tau)
        for online_statistic, target_statistic in copies:
            target_statistic.copy_(online_statistic)

    # --- Backends ----------------------------------------------------------------------------------------------------

    def _choose(self, n_updates: int, batch_size: int) -> tuple[str, bool, str]:
        """The backend, whether it compiles, and why."""
        unsupported = [optimizer for optimizer in self.optimizers if not adam.is_supported(optimizer)]
        if unsupported:
            if self.requested not in ("auto", "eager"):
                warnings.warn(
                    f"update_backend={self.requested!r} takes Adam and AdamW with one parameter group, not "
                    f"{unsupported[0]}: updates run eagerly.",
                    stacklevel=2,
                )
            return "eager", False, f"{type(unsupported[0]).__name__} is not recorded"
        if self.requested == "cudagraph" and (self.device.type != "cuda" or self._cannot_capture):
            warnings.warn("update_backend='cudagraph' is not possible here: updates run as by 'auto'.", stacklevel=2)
        elif self.requested == "compiled" and self._cannot_compile:
            return "eager", False, "compiling failed before"
        elif self.requested != "auto":
            compiles = self.requested == "compiled" or (self.requested == "cudagraph" and has_triton())
            return self.requested, compiles, "as asked for"
        if self.device.type not in ("cpu", "cuda"):
            return "eager", False, f"there is nothing else for {self.device.type}"
        if self._recordings and self._compiles:
            pays, reason = True, "compiled before"
        else:
            pays, reason = self._compiling_pays(n_updates, batch_size)
        pays = pays and (self.device.type == "cpu" or has_triton())
        if self.device.type == "cuda" and self.has_loops and not self._cannot_capture:
            return "cudagraph", pays, reason
        return ("compiled" if pays else "eager"), pays, reason

    def _compiling_pays(self, n_updates: int, batch_size: int) -> tuple[bool, str]:
        if self._cannot_compile:
            return False, "compiling failed before"
        n_parameters = sum(p.numel() for optimizer in self.optimizers for p in optimizer.param_groups[0]["params"])
        flops = FLOPS_PER_PARAMETER_AND_ROW * n_parameters * batch_size
        eager_seconds = n_updates * (EAGER_OVERHEAD_SECONDS + flops / EAGER_FLOPS_PER_SECOND)
        compile_seconds = WARM_COMPILE_SECONDS if self._is_marked() else COLD_COMPILE_SECONDS
        reason = f"compiling takes about {compile_seconds:.0f} s, the updates to come {eager_seconds:.0f} s"
        return compile_seconds <= MAX_COMPILE_SHARE * eager_seconds, reason

    def _refresh(self) -> None:
        """Drop recordings that are out of date, and follow optimizer state that was replaced by loading."""
        recorded_with = (
            self.constants(),
            self.precision,
            th.get_num_threads(),
            *[adam.hyperparameters(optimizer) for optimizer in self.optimizers],
            *[p.requires_grad for optimizer in self.optimizers for p in optimizer.param_groups[0]["params"]],
        )
        if recorded_with != self._recorded_with:
            self._recordings.clear()
            self._closures.clear()
            self._graphs.clear()
        self._recorded_with = recorded_with
        # `load_state_dict` makes a new dict
        if all(optimizer.state is seen for optimizer, seen in zip(self.optimizers, self._seen, strict=False)):
            return
        for optimizer in self.optimizers:
            adam.initialise_state(optimizer)
        state = [tensor for optimizer in self.optimizers for tensor in adam.state_tensors(optimizer)]
        self._graphs.clear()  # addresses are part of a captured graph
        replacement = {id(old): new for old, new in zip(self._state, state, strict=False)}
        for closure in self._closures:
            closure[:] = [replacement.get(id(tensor), tensor) for tensor in closure]
        self._state, self._seen = state, [optimizer.state for optimizer in self.optimizers]

    def _changing(self) -> list[th.Tensor]:
        """All tensors that an update may change."""
        networks = [*self.policy.parameters(), *self.policy.buffers()]
        optimized = [p for optimizer in self.optimizers for p in optimizer.param_groups[0]["params"]]
        return list({id(tensor): tensor for tensor in (*networks, *optimized, *self._state)}.values())

    def _compile(
        self, function: Callable[..., Any], leaves: list[th.Tensor], spec: Any
    ) -> Callable[[list[th.Tensor]], Any] | None:
        """Record and compile an update function; None and the eager backend where that fails."""
        result_spec = None

        def flat(*leaves: th.Tensor) -> list[th.Tensor]:
            nonlocal result_spec
            with th.enable_grad():
                result = function(*unflatten(leaves, spec))
            leaves_out, result_spec = flatten(result)
            return [leaf.detach() for leaf in leaves_out]

        if self.verbose > 0:
            print(f"Compiling {function.__name__.strip('_')} ...", end=" ", flush=True)
        start = time.perf_counter()
        self.policy.set_training_mode(True)
        self._is_recording = True
        try:
            recording = Recording(flat, leaves, self._changing())
            compiled = recording.compile(leaves)
        except Exception as error:  # whatever a compiler may raise: the run goes on without
            self._compiles, self._cannot_compile = False, True
            if self.backend == "compiled":
                self.backend = "eager"
            if self.verbose > 0:
                print("failed", flush=True)
            reason = f"{type(error).__name__}: {error}".strip().splitlines()[0][:200]
            warnings.warn(
                f"Compiling the update failed ({reason}). Updates run eagerly; install g++, or pass "
                "update_backend='eager' to silence this.",
                stacklevel=4,
            )
            return None
        finally:
            self._is_recording = False
        if self.verbose > 0:
            print(f"{time.perf_counter() - start:.1f} s", flush=True)
        self._closures.append(recording.closure)
        self._mark()
        return lambda leaves: unflatten(compiled(leaves), result_spec)

    def _capture(
        self, function: Callable[..., Any], pattern: tuple, arguments: Any
    ) -> Callable[[list[th.Tensor]], Any]:
        leaves, spec = flatten(arguments)
        static = [leaf.clone() for leaf in leaves]
        replay, result = graphs.capture(lambda: function(pattern, *unflatten(static, spec)), self._changing())

        def run(leaves: list[th.Tensor]) -> Any:
            for buffer, leaf in zip(static, leaves, strict=True):
                buffer.copy_(leaf, non_blocking=True)
            replay()
            return result

        return run

    def _marker(self) -> Path:
        """A file beside inductor's cache that says that updates of these shapes have been compiled."""
        shapes = [tuple(p.shape) for optimizer in self.optimizers for p in optimizer.param_groups[0]["params"]]
        # Addresses are other ones in each process
        constants = [constant for constant in self.constants() if not isinstance(constant, int) or constant < 2**20]
        kinds = sorted({type(module).__name__ for module in self.policy.modules()})
        key = repr((shapes, kinds, constants, self._batch_size, self.precision, th.__version__, th.get_num_threads()))
        try:
            user = getpass.getuser()
        except (KeyError, OSError):  # a container's user may have no name
            user = "unknown"
        folder = os.environ.get("TORCHINDUCTOR_CACHE_DIR") or f"{tempfile.gettempdir()}/torchinductor_{user}"
        return Path(folder) / "sb3_ext" / hashlib.sha256(key.encode()).hexdigest()[:24]

    def _is_marked(self) -> bool:
        try:
            return self._marker().exists()
        except OSError:
            return False

    def _mark(self) -> None:
        try:
            self._marker().parent.mkdir(parents=True, exist_ok=True)
            self._marker().touch()
        except OSError:
            pass  # a full or read-only disk: the next run takes the cache for empty


def _parameters(optimizer: th.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def check_arguments(backend: str, precision: str) -> None:
    """
    :raises ValueError: an unknown backend or precision.
    """
    if backend not in BACKENDS:
        raise ValueError(f"update_backend={backend!r} must be one of {', '.join(map(repr, BACKENDS))}.")
    if precision not in PRECISIONS:
        raise ValueError(f"matmul_precision={precision!r} must be one of {', '.join(map(repr, PRECISIONS))}.")
