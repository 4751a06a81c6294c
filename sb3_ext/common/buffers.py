"""A replay buffer that is sampled by tensor operations where it lies."""

from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import BaseBuffer, DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.type_aliases import DictReplayBufferSamples, ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from sb3_ext.datasets.dataset import Dataset, map_observations
from sb3_ext.datasets.replay_buffer import scale_actions
from sb3_ext.datasets.vec_env import discounted_sums, init_statistics


class OfflineSamples(NamedTuple):
    """SB3's ``ReplayBufferSamples`` with what some algorithms for offline data need besides; tensors as there, and:"""

    observations: Any
    actions: th.Tensor
    next_observations: Any
    dones: th.Tensor
    rewards: th.Tensor
    discounts: th.Tensor | None = None
    # The action after this transition, (batch, action_dim), and 1 where there is one, (batch, 1)
    next_actions: th.Tensor | None = None
    has_next_action: th.Tensor | None = None
    # Discounted return from this transition to the end of its episode, (batch, 1); see `returns_to_go`
    returns: th.Tensor | None = None


Samples = ReplayBufferSamples | DictReplayBufferSamples | OfflineSamples

COLUMNS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


def returns_to_go(rewards: np.ndarray, ends: np.ndarray, terminations: np.ndarray, gamma: float) -> np.ndarray:
    """
    Discounted return from each step to the end of its episode. An episode that was cut off, not terminated, is taken to
    go on with its mean reward for ever: with a reward of -1 a step that is exactly ``-1 / (1 - gamma)``.

    :param rewards: steps of episodes, one episode after the other, shape ``(n,)``
    :param ends: the last step of each episode, shape ``(n,)``, bool; the last of all counts as an end
    :param terminations: ends that terminated, shape ``(n,)``, bool
    :param gamma: discount factor in [0, 1]
    :return: float32, shape ``(n,)``
    """
    stops = np.flatnonzero(ends).tolist()
    if len(rewards) and (not stops or stops[-1] != len(rewards) - 1):
        stops.append(len(rewards) - 1)
    steps = rewards.astype(np.float64).tolist()
    returns = np.empty(len(steps), dtype=np.float32)
    first = 0
    for stop in stops:
        episode = steps[first : stop + 1]
        follows = 0.0
        if not terminations[stop] and gamma < 1:
            follows = sum(episode) / len(episode) / (1 - gamma)
        for i in reversed(range(first, stop + 1)):
            follows = steps[i] + gamma * follows
            returns[i] = follows
        first = stop + 1
    return returns


class TensorReplayBuffer(ReplayBuffer):
    """
    SB3's ``ReplayBuffer``, ``DictReplayBuffer`` and ``NStepReplayBuffer`` in one, which draws many batches in one
    gather. On a CPU the columns are NumPy arrays as in SB3 (memory is taken as they fill), which tensors share; on a
    GPU they are tensors there.

    It takes the place of SB3's buffers in any off-policy algorithm (``replay_buffer_class=TensorReplayBuffer``), and
    :meth:`from_sb3` takes over one of SB3's. Random numbers are PyTorch's, not NumPy's.

    :param buffer_size: Transitions in all, over all environments.
    :param observation_space: Observation space; a Dict of Boxes gives dicts of columns.
    :param action_space: Action space.
    :param device: Where columns and batches are.
    :param n_envs: Number of environments whose transitions come in side by side.
    :param optimize_memory_usage: Not supported, SB3's ``ReplayBuffer`` has it.
    :param handle_timeout_termination: Take an episode's end by a time limit for no termination.
    :param n_steps: Steps of the n-step return; a return ends with its episode.
    :param gamma: Discount factor of n-step returns, in [0, 1].
    :param next_actions: Batches have the action after each transition.
    :param returns: Batches have the return to the end of each transition's episode, minus infinity until it has ended.
    :raises ValueError: ``optimize_memory_usage`` is set, or ``n_steps`` is below 1.
    """

    _device: th.device
    # Shape (buffer_size, n_envs), where the buffer has them
    returns: np.ndarray

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        device: th.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        n_steps: int = 1,
        gamma: float = 0.99,
        next_actions: bool = False,
        returns: bool = False,
    ):
        if optimize_memory_usage:
            raise ValueError(
                "TensorReplayBuffer does not support optimize_memory_usage: use SB3's ReplayBuffer with "
                "replay_buffer_kwargs=dict(handle_timeout_termination=False)."
            )
        if n_steps < 1:
            raise ValueError(f"n_steps={n_steps} must be at least 1.")
        is_dict = isinstance(observation_space, spaces.Dict)
        parent = DictReplayBuffer if is_dict else ReplayBuffer
        # Allocates the columns, and warns where they do not fit into the memory
        parent.__init__(  # type: ignore[misc]
            self,  # type: ignore[arg-type]
            buffer_size,
            observation_space,  # type: ignore[arg-type]
            action_space,
            device,
            n_envs,
            handle_timeout_termination=handle_timeout_termination,
        )
        self.n_steps, self.gamma = n_steps, gamma
        self.next_actions, self.has_returns = next_actions, returns
        # Steps of the episodes that are under way, and (environment, last row, steps) of those that have ended since
        # the last batch
        self._episode_lengths = np.zeros(n_envs, dtype=np.int64)
        self._finished: list[tuple[int, int, int]] = []
        self._share()

    @staticmethod
    def can_take(buffer: ReplayBuffer) -> bool:
        """Whether this is one of SB3's buffers that :meth:`from_sb3` takes over."""
        is_sb3s = type(buffer) in (ReplayBuffer, DictReplayBuffer, NStepReplayBuffer)
        return is_sb3s and not buffer.optimize_memory_usage

    @classmethod
    def from_sb3(cls, buffer: ReplayBuffer) -> "TensorReplayBuffer":
        """
        Take over the columns of one of SB3's buffers, without a copy on a CPU.

        :raises ValueError: the buffer is a subclass whose sampling is its own (hindsight replay, ...), or optimises
            memory usage.
        """
        if not cls.can_take(buffer):
            raise ValueError(f"{type(buffer).__name__} samples in its own way, which TensorReplayBuffer would lose.")
        taken = cls.__new__(cls)
        columns = {name: value for name, value in buffer.__dict__.items() if name != "device"}
        defaults = {
            "n_steps": 1,
            "gamma": 0.99,
            "next_actions": False,
            "has_returns": False,
            "_episode_lengths": np.zeros(buffer.n_envs, dtype=np.int64),
            "_finished": [],
        }
        taken.__dict__.update({**defaults, **columns, "_device": buffer.device})
        taken._share()
        return taken

    def _share(self) -> None:
        """Make tensors of the columns, one row a transition."""

        def rows(array: np.ndarray | th.Tensor) -> th.Tensor:
            tensor = th.as_tensor(array, device=self.device)
            return tensor.view(tensor.shape[0] * tensor.shape[1], *tensor.shape[2:])

        if self.has_returns and "returns" not in self.__dict__:
            # Minus infinity is below every value, so it asks nothing of a critic
            self.returns = np.full((self.buffer_size, self.n_envs), -np.inf, dtype=np.float32)
        if self.device.type != "cpu":
            for name in self._columns:
                moved = map_observations(lambda array: th.as_tensor(array, device=self.device), getattr(self, name))
                setattr(self, name, moved)
        self._rows = {name: map_observations(rows, getattr(self, name)) for name in self._columns}

    @property
    def _columns(self) -> tuple[str, ...]:
        return (*COLUMNS, "returns") if self.has_returns else COLUMNS

    def take_extras(self, next_actions: bool = False, returns: bool = False) -> None:
        """Other extra columns than those the buffer was made with, such as after loading one of SB3's."""
        self.next_actions, self.has_returns = next_actions, returns
        self._share()

    def __getstate__(self) -> dict[str, Any]:
        """Columns as NumPy arrays, so that SB3's buffers and any machine can read them."""
        state = {name: value for name, value in self.__dict__.items() if name != "_rows"}
        return {**state, **{name: map_observations(_to_numpy, state[name]) for name in self._columns}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._device.type == "cuda" and not th.cuda.is_available():
            self._device = th.device("cpu")
        self._share()

    @property
    def device(self) -> th.device:
        """Where columns and batches are; setting it moves them."""
        return self._device

    @device.setter
    def device(self, device: th.device) -> None:
        has_columns = "_rows" in self.__dict__
        if has_columns and device != self._device:
            self.__dict__.update(self.__getstate__())
        self._device = device
        if has_columns:
            self._share()

    def add(  # type: ignore[override]
        self,
        obs: np.ndarray | dict[str, np.ndarray],
        next_obs: np.ndarray | dict[str, np.ndarray],
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """
        Store one transition of each environment.

        :param obs: shape ``(n_envs, *obs_shape)``, or a dict of such
        :param next_obs: as ``obs``; at the end of an episode its last observation
        :param action: scaled to [-1, 1], shape ``(n_envs, action_dim)``
        :param reward: shape ``(n_envs,)``
        :param done: shape ``(n_envs,)``
        :param infos: one per environment, with ``TimeLimit.truncated`` where a time limit ended the episode
        """
        self._write(self.observations, obs)
        self._write(self.next_observations, next_obs)
        self._write(self.actions, action)
        self._write(self.rewards, reward)
        self._write(self.dones, done)
        if self.handle_timeout_termination:
            self._write(self.timeouts, np.array([info.get("TimeLimit.truncated", False) for info in infos]))
        if self.has_returns:
            self.returns[self.pos] = -np.inf
            self._episode_lengths += 1
            self._finish(np.asarray(done), self.pos)
        self.pos += 1
        if self.pos == self.buffer_size:
            self.full = True
            self.pos = 0

    def end_episodes(self) -> None:
        """Cut off the episodes that are under way: what is stored next does not follow on from them."""
        if self.size() == 0:
            return
        newest = (self.pos - 1) % self.buffer_size
        going_on = 1 - self.dones[newest]
        self.timeouts[newest] += going_on
        self.dones[newest] = 1
        if self.has_returns:
            self._finish(_to_numpy(going_on), newest)

    def _finish(self, done: np.ndarray, last: int) -> None:
        """Note down which episodes have ended; their rewards may still be changed before the next batch is drawn."""
        for i in np.flatnonzero(done):
            if self._episode_lengths[i] > 0:
                self._finished.append((int(i), last, int(min(self._episode_lengths[i], self.buffer_size))))
            self._episode_lengths[i] = 0

    def _fill_returns(self) -> None:
        """Returns of the episodes that have ended, from the rewards as they stand now."""
        for i, last, length in self._finished:
            steps = np.arange(last - length + 1, last + 1) % self.buffer_size
            rewards = _to_numpy(self.rewards[steps, i])
            ends = np.arange(length) == length - 1
            terminates = ends & (not bool(self.timeouts[last, i]))
            self._write_rows(steps * self.n_envs + i, returns_to_go(rewards, ends, terminates, self.gamma))
        self._finished.clear()

    def _write_rows(self, rows: np.ndarray, returns: np.ndarray) -> None:
        self._rows["returns"][th.as_tensor(rows, device=self.device)] = th.as_tensor(returns, device=self.device)

    def _write(self, column: Any, values: Any) -> None:
        if isinstance(column, dict):
            for key in column:
                self._write(column[key], values[key])
            return
        row = column[self.pos]
        values = np.reshape(values, row.shape)
        if isinstance(row, np.ndarray):
            row[...] = values
        else:
            row.copy_(th.as_tensor(values))

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> Samples:  # type: ignore[override]
        """
        :param batch_size: number of transitions, drawn with replacement
        :param env: normalises observations and rewards
        :return: tensors of shape ``(batch_size, ...)`` on the device; ``discounts`` is None for one-step returns
        :raises ValueError: the buffer is empty
        """
        n_rows = self.size() * self.n_envs
        if n_rows == 0:
            raise ValueError("The replay buffer is empty: collect transitions before sampling.")
        return self._gather(th.randint(n_rows, (batch_size,), device=self.device), env)

    def _get_samples(  # type: ignore[override]
        self, batch_inds: np.ndarray, env: VecNormalize | None = None
    ) -> Samples:
        env_indices = th.randint(self.n_envs, (len(batch_inds),), device=self.device)
        return self._gather(th.as_tensor(batch_inds, device=self.device) * self.n_envs + env_indices, env)

    def _gather(self, rows: th.Tensor, env: VecNormalize | None) -> Samples:
        columns = self._rows
        if self.has_returns:
            self._fill_returns()
        if self.n_steps > 1:
            rewards, discounts, last = self._n_step_returns(rows, env)
        else:
            rewards, discounts, last = _normalized_rewards(columns["rewards"].index_select(0, rows), env), None, rows
        samples_class: Any = ReplayBufferSamples
        extras = {}
        if self.next_actions or self.has_returns:
            samples_class, extras = OfflineSamples, self._extras(rows, last, env)
        elif isinstance(self.observation_space, spaces.Dict):
            samples_class = DictReplayBufferSamples
        return samples_class(
            observations=self._observations("observations", rows, env),
            actions=columns["actions"].index_select(0, rows),
            next_observations=self._observations("next_observations", last, env),
            dones=(columns["dones"].index_select(0, last) * (1 - columns["timeouts"].index_select(0, last))).unsqueeze(
                1
            ),
            rewards=rewards.unsqueeze(1),
            discounts=discounts,
            **extras,
        )

    def _extras(self, rows: th.Tensor, last: th.Tensor, env: VecNormalize | None) -> dict[str, th.Tensor]:
        """What :class:`OfflineSamples` has besides; ``last`` are the rows that transitions end with."""
        extras = {}
        if self.next_actions:
            following = (last + self.n_envs) % (self.buffer_size * self.n_envs)
            newest = (self.pos - 1) % self.buffer_size
            ended = self._rows["dones"].index_select(0, last) + self._rows["timeouts"].index_select(0, last) > 0
            there = ~ended & (last.div(self.n_envs, rounding_mode="floor") != newest)
            extras["next_actions"] = self._rows["actions"].index_select(0, following)
            extras["has_next_action"] = there.float().unsqueeze(1)
        if self.has_returns:
            returns = self._rows["returns"].index_select(0, rows)
            if env is not None and env.norm_reward:
                returns = returns / _reward_scale(env)
            extras["returns"] = returns.unsqueeze(1)
        return extras

    def _observations(self, name: str, rows: th.Tensor, env: VecNormalize | None) -> Any:
        taken = self._take(name, rows)
        if env is None or not env.norm_obs:
            return map_observations(_to_float32, taken)
        if not isinstance(taken, dict):
            assert isinstance(env.obs_rms, RunningMeanStd)
            return _standardized(taken, env.obs_rms, env)
        assert isinstance(env.obs_rms, dict) and env.norm_obs_keys is not None
        return {
            key: _standardized(value, env.obs_rms[key], env) if key in env.norm_obs_keys else _to_float32(value)
            for key, value in taken.items()
        }

    def _take(self, name: str, rows: th.Tensor) -> Any:
        return map_observations(lambda column: column.index_select(0, rows), self._rows[name])

    def _n_step_returns(self, rows: th.Tensor, env: VecNormalize | None) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """Discounted rewards up to the end of the episode or the newest transition, gamma**n, and the last row."""
        rewards, dones, timeouts = (self._rows[name] for name in ("rewards", "dones", "timeouts"))
        newest = (self.pos - 1) % self.buffer_size
        n_rows = self.buffer_size * self.n_envs
        last = rows
        returns = _normalized_rewards(rewards[rows], env)
        discounts = th.full_like(returns, self.gamma)
        alive = th.ones_like(returns, dtype=th.bool)
        for k in range(1, self.n_steps):
            goes_on = (dones[last] + timeouts[last] == 0) & (last.div(self.n_envs, rounding_mode="floor") != newest)
            alive = alive & goes_on
            last = th.where(alive, (rows + k * self.n_envs) % n_rows, last)
            returns = returns + alive * self.gamma**k * _normalized_rewards(rewards[last], env)
            discounts = th.where(alive, self.gamma ** (k + 1), discounts)
        return returns, discounts.unsqueeze(1), last


class DatasetBuffer(TensorReplayBuffer):
    """
    A dataset as a read-only buffer: sampled like :class:`TensorReplayBuffer`, but every observation is there once. On a
    CPU observations, and actions where their bounds are -1 and 1, are the dataset's own arrays.

    :param dataset: Transitions, checked against the spaces before.
    :param observation_space: Observation space of the model.
    :param action_space: Action space of the model; actions are scaled from it to [-1, 1].
    :param device: Where columns and batches are.
    :param n_steps: Steps of the n-step return; a return ends with its episode.
    :param gamma: Discount factor of n-step returns, in [0, 1].
    :param next_actions: As in :class:`TensorReplayBuffer`.
    :param returns: As in :class:`TensorReplayBuffer`.
    """

    def __init__(
        self,
        dataset: Dataset,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        device: th.device | str = "auto",
        n_steps: int = 1,
        gamma: float = 0.99,
        next_actions: bool = False,
        returns: bool = False,
    ):
        n = len(dataset)
        # Not TensorReplayBuffer's constructor, which would allocate columns
        BaseBuffer.__init__(self, n, observation_space, action_space, device, n_envs=1)  # type: ignore[arg-type]
        self.n_steps, self.gamma = n_steps, gamma
        self.next_actions, self.has_returns = next_actions, returns
        self._returns_gamma: float | None = None
        self.full = True
        ends = dataset.ends

        def column(array: np.ndarray) -> th.Tensor:
            array = array.astype(np.int64) if array.dtype.kind in "ui" and array.dtype != np.uint8 else array
            if not array.flags.writeable:
                array = array.copy()  # PyTorch has no tensors that must not be written
            return th.from_numpy(array).to(self.device)

        actions = scale_actions(dataset.actions, action_space).reshape(n, -1)
        self._rows = {
            "frames": map_observations(
                lambda array: column(array.reshape(len(array), *array.shape[1:] or (1,))), dataset.frames
            ),
            "observations": column(dataset.rows),
            "next_observations": column(dataset.next_rows),
            "actions": column(actions),
            "rewards": column(dataset.rewards),
            "dones": column(ends.astype(np.float32)),
            # SB3 bootstraps where `timeouts` is set; a state that is terminal as well must not be
            "timeouts": column((ends & ~dataset.terminations).astype(np.float32)),
        }

    def _fill_returns(self) -> None:
        """Of the whole dataset; anew where the discount factor has changed."""
        if self._returns_gamma == self.gamma:
            return
        rewards, dones, timeouts = (self._rows[name].cpu().numpy() for name in ("rewards", "dones", "timeouts"))
        ends = dones > 0
        returns = returns_to_go(rewards, ends, ends & (timeouts == 0), self.gamma)
        self._rows["returns"] = th.from_numpy(returns).to(self.device)
        self._returns_gamma = self.gamma

    @property
    def device(self) -> th.device:
        """Where columns and batches are, for good."""
        return self._device

    @device.setter
    def device(self, device: th.device) -> None:
        self._device = device

    def add(self, *args: Any, **kwargs: Any) -> None:
        """:raises TypeError: always; the dataset stays as it is"""
        raise TypeError("A DatasetBuffer is read-only. New transitions go into the algorithm's replay buffer.")

    def init_statistics(self, normalize: VecNormalize) -> None:
        """A young ``VecNormalize`` takes up the statistics of observations and returns."""
        frames = map_observations(_to_numpy, self.frames)
        rewards, ends = (_to_numpy(self._rows[name]) for name in ("rewards", "dones"))
        init_statistics(normalize, frames, discounted_sums(rewards, ends > 0, normalize.gamma))

    def __getstate__(self) -> dict[str, Any]:
        rows = {name: map_observations(lambda column: column.cpu(), rows) for name, rows in self._rows.items()}
        return {**self.__dict__, "_rows": rows}

    def _share(self) -> None:
        self._rows = {
            name: map_observations(lambda column: column.to(self._device), rows) for name, rows in self._rows.items()
        }

    def goal_observations(self, env: VecNormalize | None = None) -> Any:
        """
        What transitions with a reward led to, where rewards are one of two and such a transition ends its episode, in
        their order; nothing otherwise.

        :param env: normalises observations
        :return: tensors of shape ``(n, *obs_shape)``
        """
        rewards = self._rows["rewards"]
        low, high = rewards.min(), rewards.max()
        is_rewarded = (rewards == high) & (low < high)
        is_end = (self._rows["dones"] > 0) & (self._rows["timeouts"] == 0)
        if not ((rewards == low) | is_rewarded).all() or not is_end[is_rewarded].all():
            is_rewarded = th.zeros_like(is_rewarded)
        return self._observations("next_observations", is_rewarded.nonzero().squeeze(1), env)

    @property
    def frames(self) -> Any:
        """All observations of the dataset as tensors, each once."""
        return self._rows["frames"]

    def _take(self, name: str, rows: th.Tensor) -> Any:
        frames = self._rows[name].index_select(0, rows)
        return map_observations(lambda column: column.index_select(0, frames), self._rows["frames"])


def _to_numpy(column: np.ndarray | th.Tensor) -> np.ndarray:
    return column.cpu().numpy() if isinstance(column, th.Tensor) else column


def _to_float32(values: th.Tensor) -> th.Tensor:
    return values.float() if values.dtype == th.float64 else values


def _standardized(values: th.Tensor, statistics: RunningMeanStd, env: VecNormalize) -> th.Tensor:
    """``VecNormalize.normalize_obs`` where the values are."""
    mean, var = (th.as_tensor(x, device=values.device) for x in (statistics.mean, statistics.var))
    return ((values - mean) / (var + env.epsilon).sqrt()).clamp(-env.clip_obs, env.clip_obs).float()


def _normalized_rewards(rewards: th.Tensor, env: VecNormalize | None) -> th.Tensor:
    """``VecNormalize.normalize_reward``."""
    if env is None or not env.norm_reward:
        return rewards
    return (rewards / _reward_scale(env)).clamp(-env.clip_reward, env.clip_reward)


def _reward_scale(env: VecNormalize) -> float:
    return float(np.sqrt(env.ret_rms.var + env.epsilon))
