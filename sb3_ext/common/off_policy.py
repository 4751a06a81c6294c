"""What all off-policy algorithms of the package share: update engine, replay buffer, acting, logging."""

import io
import pathlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.her import HerReplayBuffer

from sb3_ext.common.buffers import Samples, TensorReplayBuffer
from sb3_ext.common.engine import UpdateEngine
from sb3_ext.common.engine.engine import check_arguments
from sb3_ext.common.engine.process import tune_process
from sb3_ext.datasets.dataset import map_observations

# A mixin uses the class that it is mixed into; only a type checker needs to be told which that is
if TYPE_CHECKING:
    from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm as _Base
else:
    _Base = object


class OffPolicyMixin(_Base):
    """
    Puts one of SB3's off-policy algorithms on the :class:`~sb3_ext.common.engine.UpdateEngine`.

    The class that uses it sets ``update_backend`` and ``matmul_precision`` in its constructor, before
    ``_setup_model``, and has ``_optimizers``, ``_update_constants`` and ``_planned_updates``. It gets ``engine``, a
    :class:`~sb3_ext.common.buffers.TensorReplayBuffer` where the user names no other, and actions without the cost of
    ``predict``. A model that is loaded without an environment allocates no replay buffer.
    """

    update_backend: str
    matmul_precision: str
    # What batches have besides SB3's columns: arguments of TensorReplayBuffer
    buffer_extras: ClassVar[Mapping[str, bool]] = {}
    # Saved with the model
    _chose_buffer = False

    def _optimizers(self) -> list[th.optim.Optimizer]:
        """All optimizers that updates step."""
        raise NotImplementedError

    def _update_constants(self) -> tuple:
        """Numbers in the update functions that a user may change on the model."""
        raise NotImplementedError

    def _planned_updates(self, n_timesteps: int) -> int:
        """Number of updates that so many timesteps bring."""
        raise NotImplementedError

    def _setup_model(self) -> None:
        check_arguments(self.update_backend, self.matmul_precision)
        if self.device.type == "cpu":
            tune_process()
        if self._chose_buffer:
            # A loaded model: its choice is no choice of the user's, and `n_steps` and `gamma` may be others now
            if self.replay_buffer_class is TensorReplayBuffer:
                self.replay_buffer_class = None
            self.replay_buffer_kwargs = {
                key: value for key, value in self.replay_buffer_kwargs.items() if key not in ("n_steps", "gamma")
            }
        self._chose_buffer = self.replay_buffer_class is None and not self.optimize_memory_usage
        n_steps = self.n_steps
        if self._chose_buffer:
            self.replay_buffer_class = TensorReplayBuffer
            self.replay_buffer_kwargs = {
                **self.replay_buffer_kwargs,
                "n_steps": n_steps,
                "gamma": self.gamma,
                **self.buffer_extras,
            }
            self.n_steps = 1  # else SB3 warns that a buffer class other than its own knows nothing of it
        elif self.buffer_extras:
            names = " and ".join(self.buffer_extras).replace("_", " ")
            raise ValueError(f"{type(self).__name__} needs {names} in its batches: leave replay_buffer_class out.")
        if self.env is None and self.replay_buffer is None:
            # Loaded to predict: hold the place of the buffer, which SB3 would allocate in full
            self.replay_buffer = ReplayBuffer(1, spaces.Discrete(1), spaces.Discrete(1), device="cpu")
            super()._setup_model()
            self.replay_buffer = None
        else:
            super()._setup_model()
        self.n_steps = n_steps
        self._engine: UpdateEngine | None = None

    def _check_device(self) -> None:
        """For constructors: a model of a GPU may be loaded without one."""
        if self.update_backend == "cudagraph" and self.device.type != "cuda":
            raise ValueError(f"update_backend='cudagraph' needs device='cuda', not {self.device}: use 'auto'.")

    @property
    def engine(self) -> UpdateEngine:
        """What runs the updates of this model; a new one where networks or optimizers are other objects."""
        if self._engine is None or not self._engine.runs(self.policy, self._optimizers()):
            self._engine = UpdateEngine(
                self.policy,
                self._optimizers(),
                self._update_constants,
                self.update_backend,
                self.matmul_precision,
                self.verbose,
            )
        return self._engine

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        if self._can_collect() and self.replay_buffer is None:
            self.replay_buffer = self._make_replay_buffer()
        if isinstance(self.replay_buffer, TensorReplayBuffer) and (reset_num_timesteps or self._last_obs is None):
            self.replay_buffer.end_episodes()  # SB3 is about to reset the environment
        self.engine.requested, self.engine.precision = self.update_backend, self.matmul_precision
        self.engine.plan(self._planned_updates(total_timesteps), self.batch_size)
        return super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)

    def _can_collect(self) -> bool:
        """Whether there is an environment to collect transitions in."""
        return self.env is not None

    def _make_replay_buffer(self) -> ReplayBuffer:
        """The buffer that SB3 makes in ``_setup_model``, for a model that was loaded without an environment."""
        assert self.replay_buffer_class is not None
        kwargs = self.replay_buffer_kwargs.copy()
        if issubclass(self.replay_buffer_class, HerReplayBuffer):
            kwargs["env"] = self.env
        return self.replay_buffer_class(
            self.buffer_size,
            self.observation_space,
            self.action_space,
            device=self.device,
            n_envs=self.n_envs,
            optimize_memory_usage=self.optimize_memory_usage,
            **kwargs,
        )

    def load_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase, truncate_last_traj: bool = True) -> None:
        """As in SB3; buffers that SB3's own algorithms saved are taken over."""
        super().load_replay_buffer(path, truncate_last_traj)
        buffer = self.replay_buffer
        assert buffer is not None
        if self._chose_buffer:
            if TensorReplayBuffer.can_take(buffer):
                buffer = TensorReplayBuffer.from_sb3(buffer)
            if isinstance(buffer, TensorReplayBuffer):
                buffer.n_steps = self.n_steps
                buffer.take_extras(**self.buffer_extras)
                buffer.device = self.device
        self.replay_buffer = buffer

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        is_box = isinstance(self.action_space, spaces.Box)
        if self.num_timesteps < learning_starts or not (is_box and self.policy.squash_output):
            return super()._sample_action(learning_starts, action_noise, n_envs)
        # `predict` without its checks and copies: observations come from the environment itself
        assert self._last_obs is not None
        with th.inference_mode():
            scaled = self.policy._predict(obs_as_tensor(self._last_obs, self.device)).cpu().numpy()
        scaled = scaled.reshape(-1, *self.action_space.shape)  # type: ignore[misc]
        if action_noise is not None:
            scaled = np.clip(scaled + action_noise(), -1, 1)
        return self.policy.unscale_action(scaled), scaled

    def _sample_batches(self, buffer: ReplayBuffer, n_batches: int, batch_size: int) -> Samples:
        """
        Batches in one gather.

        :return: tensors of shape ``(n_batches, batch_size, ...)``
        """
        is_tensors = isinstance(buffer, TensorReplayBuffer)
        if is_tensors and self._chose_buffer:
            buffer.gamma = self.gamma  # type: ignore[attr-defined]
        samples = buffer.sample(n_batches * batch_size, env=self._vec_normalize_env)
        if is_tensors:
            return map_samples(lambda x: x.reshape(n_batches, batch_size, *x.shape[1:]), samples)
        # Rows are dealt out in turn, since a buffer may order them: HER puts its relabelled ones last
        return map_samples(lambda x: x.reshape(batch_size, n_batches, *x.shape[1:]).transpose(0, 1), samples)

    def _discounts(self, batch: Samples) -> th.Tensor | float:
        # n-step samples carry gamma**n, which is smaller than n steps where an episode ends
        return self.gamma if batch.discounts is None else batch.discounts

    def _log_metrics(self, metrics: "Metrics") -> None:
        """Means over the updates between two dumps of the logger."""
        for name, value in metrics.means().items():
            self.logger.record_mean(f"train/{name}", value)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_engine"]


class Metrics:
    """Scalar tensors of many updates, which leave the device in one copy."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._scalars: list[th.Tensor] = []
        self._rows: list[th.Tensor] = []
        self._values: th.Tensor | None = None

    def add(self, metrics: Mapping[str, th.Tensor]) -> None:
        """Take over 0-d tensors."""
        self._names += metrics.keys()
        self._scalars += metrics.values()

    def extend(self, sealed: "Metrics") -> None:
        """Take over the values of another, which a captured loop writes anew each time."""
        if sealed._values is not None:
            self._names += sealed._names
            self._rows.append(sealed._values.clone())

    def seal(self) -> "Metrics":
        """After the last ``add``: put the values side by side. A captured loop of updates ends with this."""
        if self._scalars:
            self._rows.append(th.stack(self._scalars))
        self._values = th.cat(self._rows) if self._rows else None
        self._scalars.clear()
        self._rows.clear()
        return self

    def means(self) -> dict[str, float]:
        """Mean of each metric over the updates that have it."""
        columns: dict[str, list[float]] = defaultdict(list)
        for name, value in zip(self._names, self._values.tolist() if self._values is not None else (), strict=True):
            columns[name].append(value)
        return {name: sum(values) / len(values) for name, values in columns.items()}


def unstack(batches: Samples | None) -> Iterator[Samples]:
    """Batches of shape ``(n_batches, batch_size, ...)`` one by one."""
    n_batches = 0 if batches is None else len(batches.rewards)
    for i in range(n_batches):
        assert batches is not None
        yield map_samples(lambda x, i=i: x[i], batches)


def map_samples(function: Any, *samples: Samples) -> Samples:
    """Apply a function to the tensors of samples, field by field and key by key."""

    def apply(*values: Any) -> Any:
        return None if values[0] is None else map_observations(function, *values)

    return type(samples[0])(*(apply(*values) for values in zip(*samples, strict=True)))
