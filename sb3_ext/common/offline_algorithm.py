"""What the offline algorithms share: gradient steps on a dataset, then, if asked for, collection online."""

import io
import os
import pathlib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule, TrainFreq
from stable_baselines3.common.vec_env import DummyVecEnv
from stable_baselines3.her import HerReplayBuffer

from sb3_ext.common.actions import action_size, encode_actions
from sb3_ext.common.buffers import Samples
from sb3_ext.common.dataset_mixin import DatasetMixin
from sb3_ext.common.hierarchical_policy import OWN_ARGUMENTS, HierarchicalPolicy
from sb3_ext.common.off_policy import Metrics, map_samples, unstack
from sb3_ext.common.schedules import as_schedule, is_whole
from sb3_ext.common.signatures import joint_signature
from sb3_ext.datasets.dataset import Dataset, Metadata
from sb3_ext.datasets.errors import DatasetError
from sb3_ext.datasets.load import DatasetLike, load
from sb3_ext.datasets.transforms import reward_factor_and_shift, transform_from_dict
from sb3_ext.datasets.vec_env import channels_first, check_env_id, check_transforms, transforms_of

SelfOfflineAlgorithm = TypeVar("SelfOfflineAlgorithm", bound="OfflineAlgorithm")

# Batches that are drawn in one gather, and gradient steps between two lines of the log for each `log_interval`
CHUNK = 50
LOG_STEPS = 250

# For callbacks that look at what a step collected
NO_TRANSITIONS: dict[str, Any] = {"rewards": np.zeros(0), "dones": np.zeros(0, bool), "infos": []}

# Of policies, which algorithms have attributes for
NETWORKS = ("actor", "actor_target", "critic", "critic_target", "value", "low_level")


class OfflineAlgorithm(DatasetMixin, OffPolicyAlgorithm):
    """
    Base class. :meth:`learn` does gradient steps on a dataset, each of which counts as a timestep, with all of SB3's
    callbacks and no environment; after ``n_offline_steps`` of them it goes on as SB3's off-policy algorithms do, with
    batches that mix the dataset and what is collected.

    A class that derives from it has ``policy_aliases``, ``_update``, ``_optimizers``, ``_update_constants`` and
    ``n_noise``.

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"``, ``"MultiInputPolicy"`` or a class; for all but BC also
        ``"HierarchicalPolicy"`` (:class:`~sb3_ext.common.hierarchical_policy.HierarchicalPolicy`), with ``n_steps`` of
        20 to 50, say.
    :param env: Environment for online training. None learns from the dataset alone.
    :param dataset: Whatever :func:`sb3_ext.datasets.load` takes. A model that is loaded needs it again only to learn.
    :param dataset_kwargs: Arguments of that function, such as ``dict(reward_shift=-1)``. Shifts and scales of rewards
        apply to rewards of the environment too.
    :param n_offline_steps: Gradient steps on the dataset before collection starts, over all calls of ``learn``. None
        never collects.
    :param offline_ratio: Share of each batch that comes from the dataset after that, in [0, 1].
    :param learning_rate: Learning rate, a number, a schedule, or a string such as ``"lin_3e-4"``.
    :param buffer_size: Room for collected transitions.
    :param learning_starts: Collected transitions before updates go on.
    :param batch_size: Transitions in a batch.
    :param tau: Step of the target networks towards the networks, in (0, 1].
    :param gamma: Discount factor, in [0, 1].
    :param train_freq: Steps between updates online.
    :param gradient_steps: Updates then; -1 for as many as steps.
    :param action_noise: Noise on collected actions.
    :param replay_buffer_class: Buffer for collected transitions.
    :param replay_buffer_kwargs: Its arguments.
    :param optimize_memory_usage: Not supported by the default buffer.
    :param n_steps: Steps of n-step returns, at least 1.
    :param standardize_observations: Shift and scale observations by the dataset's statistics, inside the policy.
    :param update_backend: ``"auto"``, ``"eager"``, ``"compiled"`` or ``"cudagraph"``.
    :param matmul_precision: ``"fp32"`` or ``"bf16"``.
    :param stats_window_size: Episodes that rollout statistics average over.
    :param tensorboard_log: Folder for TensorBoard.
    :param policy_kwargs: Arguments of the policy.
    :param verbose: 0, 1 or 2.
    :param seed: Seed of everything random.
    :param device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
    :raises sb3_ext.datasets.DatasetError: the dataset is missing, broken or of another environment.
    :raises ValueError: an argument is out of its range, or ``HierarchicalPolicy`` cannot do with the others: it takes
        vector observations, continuous actions and a discount factor that tells steps apart.
    """

    # Of actions
    supported_action_spaces: ClassVar[tuple[type[spaces.Space], ...]] = (spaces.Box,)
    # Standard normal arrays of shape (batch, action_size) that an update takes
    n_noise = 0
    # Saved with the model
    _n_offline_done = 0
    _n_collected = 0
    actor: Any

    def __init__(
        self,
        policy: str | type[BasePolicy],
        env: GymEnv | str | None = None,
        dataset: DatasetLike | None = None,
        dataset_kwargs: Mapping[str, Any] | None = None,
        n_offline_steps: int | None = None,
        offline_ratio: float = 0.5,
        learning_rate: float | str | Schedule = 3e-4,
        buffer_size: int = 1_000_000,
        learning_starts: int = 0,
        batch_size: int = 256,
        tau: float = 0.005,
        gamma: float = 0.99,
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int = 1,
        action_noise: ActionNoise | None = None,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        optimize_memory_usage: bool = False,
        n_steps: int = 1,
        standardize_observations: bool = False,
        update_backend: str = "auto",
        matmul_precision: str = "fp32",
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ):
        super().__init__(
            policy,
            env,  # type: ignore[arg-type]
            learning_rate,  # type: ignore[arg-type]
            buffer_size,
            learning_starts,
            batch_size,
            tau,
            gamma,
            train_freq,
            gradient_steps,
            action_noise=action_noise,
            replay_buffer_class=replay_buffer_class,
            replay_buffer_kwargs=replay_buffer_kwargs,
            optimize_memory_usage=optimize_memory_usage,
            n_steps=n_steps,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            support_multi_env=True,
            sde_support=False,
            supported_action_spaces=self.supported_action_spaces,
        )
        self.dataset = os.fspath(dataset) if isinstance(dataset, os.PathLike) else dataset
        self.dataset_kwargs = dict(dataset_kwargs or {})
        self.n_offline_steps = n_offline_steps
        self.offline_ratio = offline_ratio
        self.standardize_observations = standardize_observations
        self.update_backend = update_backend
        self.matmul_precision = matmul_precision
        if _init_setup_model:
            self._check_arguments()
            self._check_device()
            data = self._load_dataset()
            if self.env is None:
                self._take_spaces(data)
            self._setup_model()
            self._attach(data)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # For `help`, completion and RL Zoo: constructors end in **kwargs, which are arguments of the next class
        cls.__signature__ = joint_signature(cls)  # type: ignore[attr-defined]

    def _get_policy_from_name(self, policy_name: str) -> type[BasePolicy]:
        if policy_name not in self.policy_aliases:
            raise ValueError(f"{type(self).__name__} has no {policy_name}, but {', '.join(self.policy_aliases)}.")
        return self.policy_aliases[policy_name]

    def _check_arguments(self) -> None:
        if not 0 <= self.offline_ratio <= 1:
            raise ValueError(f"offline_ratio={self.offline_ratio} is a share of each batch and must be in [0, 1].")
        for name in ("n_steps", "batch_size", "buffer_size"):
            self._make_whole(name, minimum=1)
        if self.n_offline_steps is not None:
            self._make_whole("n_offline_steps", minimum=0, otherwise=", or None")
        if not 0 <= self.gamma <= 1 or not 0 < self.tau <= 1:
            raise ValueError(f"gamma={self.gamma} must be in [0, 1], tau={self.tau} in (0, 1].")

    def _make_whole(self, name: str, minimum: int, otherwise: str = "") -> None:
        """
        :raises ValueError: the argument is no whole number, which YAML may have as 1e3, or below its minimum
        """
        value = getattr(self, name)
        if not is_whole(value) or value < minimum:
            raise ValueError(f"{name}={value!r} must be a whole number of at least {minimum}{otherwise}.")
        setattr(self, name, int(value))

    def _load_dataset(self) -> Dataset:
        if self.dataset is None:
            raise DatasetError(
                f"{type(self).__name__} learns from a dataset: pass dataset=..., see sb3_ext.datasets.load. "
                "A model that collects goes on without one after load(path, dataset=None, offline_ratio=0)."
            )
        return load(self.dataset, **self._load_kwargs())

    def _load_kwargs(self) -> dict[str, Any]:
        """Arguments that the dataset is loaded with."""
        return self.dataset_kwargs

    def _take_spaces(self, data: Dataset) -> None:
        observation_space, action_space = data.metadata.observation_space, data.metadata.action_space
        if observation_space is None or action_space is None:
            raise DatasetError(
                f"{data.source} does not name its spaces: pass an environment, or dataset=load(...).with_metadata("
                "observation_space=..., action_space=...)."
            )
        for name in ("MlpPolicy", "CnnPolicy"):  # as SB3 has it with an environment
            if self.policy_class is self.policy_aliases.get(name) and isinstance(observation_space, spaces.Dict):
                raise ValueError(f"{data.source} has Dict observations: policy='MultiInputPolicy', not '{name}'.")
        if not isinstance(action_space, self.supported_action_spaces):
            names = " or ".join(space.__name__ for space in self.supported_action_spaces)
            hint = "" if spaces.Discrete in self.supported_action_spaces else " BC, AWAC and IQL take discrete ones."
            raise ValueError(f"{type(self).__name__} takes {names} actions, the dataset's are {action_space}.{hint}")
        if isinstance(action_space, spaces.Box) and not action_space.is_bounded():
            raise ValueError(f"Actions are scaled from their bounds, which have to be finite, not {action_space}.")
        if isinstance(action_space, spaces.Discrete) and action_space.start != 0:
            raise ValueError(f"Discrete actions have to start at 0, as in SB3, not {action_space}.")
        self.observation_space, self.action_space = channels_first(observation_space), action_space
        self.n_envs = 1

    def _setup_model(self) -> None:
        if isinstance(self.learning_rate, str):
            self.learning_rate = as_schedule(self.learning_rate, "learning_rate")
        self._check_hierarchy()
        super()._setup_model()
        self._convert_train_freq()
        policies = [self.policy.high_level, self.policy] if self._is_hierarchical else [self.policy]
        for policy in policies:
            for name in NETWORKS:
                if hasattr(policy, name):
                    setattr(self, name, getattr(policy, name))

    @property
    def _is_hierarchical(self) -> bool:
        return issubclass(self.policy_class, HierarchicalPolicy)

    def _check_hierarchy(self) -> None:
        """
        :raises ValueError: a hierarchical policy is not one for this algorithm
        """
        own = self.policy_aliases.get("HierarchicalPolicy", ())
        if self._is_hierarchical and not issubclass(self.policy_class, own):
            name = type(self).__name__
            fix = f"its own is policy='HierarchicalPolicy', not {self.policy_class}" if own else "all but BC have one"
            raise ValueError(f"{name} does not learn with that HierarchicalPolicy: {fix}.")
        if not self._is_hierarchical and (others := sorted(OWN_ARGUMENTS & self.policy_kwargs.keys())):
            fix = "policy='HierarchicalPolicy'" if own else f"all offline algorithms but {type(self).__name__} have one"
            raise ValueError(f"policy_kwargs has arguments of a HierarchicalPolicy, {', '.join(others)}: {fix}.")

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """
        As in SB3; a model that has collected nothing yet takes any number of environments, and bounds and float types
        of observations may differ: files in D4RL's layout name neither.
        """
        env = self._wrap_env(env, self.verbose)
        if _are_alike(env.observation_space, self.observation_space):
            self.observation_space = env.observation_space
        if self._n_collected == 0:
            self.n_envs = env.num_envs
            if self.replay_buffer is not None and self.replay_buffer.n_envs != self.n_envs:
                self.replay_buffer = None  # made anew when learning starts
        super().set_env(env, force_reset)

    @classmethod
    def load(  # type: ignore[override]
        cls: type[SelfOfflineAlgorithm],
        path: str | pathlib.Path | io.BufferedIOBase,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> SelfOfflineAlgorithm:
        """As in SB3; the environment may be any that :meth:`set_env` takes, and any number of them."""
        model = super().load(path, None, device, custom_objects, print_system_info, force_reset, **kwargs)
        if env is not None:
            env = cls._wrap_env(env, model.verbose)
            model.n_envs = env.num_envs
            model.set_env(env, force_reset)
            model.replay_buffer = model._make_replay_buffer()
        return model

    # --- Learning ----------------------------------------------------------------------------------------------------

    def learn(
        self: SelfOfflineAlgorithm,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int | None = 4,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfOfflineAlgorithm:
        """
        :param total_timesteps: gradient steps on the dataset and collected transitions together
        :param callback: called after each of either; with several environments after as many, as in SB3
        :param log_interval: a line of the log each ``250 * log_interval`` gradient steps and after the last one, and
            each ``log_interval`` episodes; None for no others than the last
        :raises DatasetError: the dataset of a loaded model is not there
        :raises ValueError: steps are left for collection, and there is no environment
        """
        self._check_arguments()  # they may have been changed on the model
        total_timesteps = int(total_timesteps)  # 1e6, say
        n_offline = self._n_offline_of(total_timesteps)
        if n_offline > 0 or self.offline_ratio > 0:
            self._require_dataset()
        if n_offline < total_timesteps:
            self._check_environment()
        with self._environment():
            # The progress bar looks up this name
            total_timesteps, started = self._setup_learn(
                total_timesteps, callback, reset_num_timesteps, tb_log_name or type(self).__name__, progress_bar
            )
            started.on_training_start(locals(), globals())
            if self._learn_offline(n_offline, started, log_interval):
                self._learn_online(total_timesteps, started, log_interval)
            started.on_training_end()
        return self

    def _require_dataset(self) -> None:
        """For a model that was loaded, which has none yet."""
        if self.dataset_buffer is None:
            self._attach(self._load_dataset())

    def _attach(self, dataset: Dataset) -> None:
        before = self.dataset_metadata
        if before is not None:
            self._check_same_kind(Metadata.from_dict(before), dataset)
        super()._attach(dataset)

    def _check_same_kind(self, before: Metadata, dataset: Dataset) -> None:
        """
        :raises DatasetError: a loaded model would go on with rewards or observations of another kind
        """
        was, now = ([t.to_dict() for t in data.transforms if t.changes_env] for data in (before, dataset.metadata))
        if was != now:
            raise DatasetError(
                f"This model was trained on data that went through {was}, {dataset.source} went through {now}: pass "
                f"raw data with dataset_kwargs={self.dataset_kwargs}, or data that went through the same."
            )
        if before.env_id != dataset.env_id:
            message = f"This model was trained on data of {before.env_id}; {dataset.source} is of {dataset.env_id}."
            warnings.warn(message, stacklevel=5)

    def _check_environment(self) -> None:
        """
        :raises DatasetError: what is collected would not be of the dataset's kind
        :raises ValueError: rewards would not be
        """
        assert self.env is not None
        if self.dataset_metadata is not None:
            metadata = Metadata.from_dict(self.dataset_metadata)
            check_env_id(metadata, self.env)
            check_transforms(metadata, self.env, with_rewards=False)
        if self._reward_change == (1.0, 0.0):
            return
        normalize = self.get_vec_normalize_env()
        if normalize is not None and normalize.norm_reward:
            raise ValueError(
                "The dataset's rewards are shifted or scaled, and VecNormalize would scale them once more by the "
                "environment's: VecNormalize(..., norm_reward=False)."
            )
        if self.replay_buffer_class is not None and issubclass(self.replay_buffer_class, HerReplayBuffer):
            raise ValueError(
                "HerReplayBuffer computes rewards anew, without the shift or scale of the dataset's: have the "
                "environment shift them, and leave it out of dataset_kwargs."
            )

    @property
    def _reward_change(self) -> tuple[float, float]:
        """What the dataset's transforms do to rewards, and the environment does not by itself: factor and shift."""
        transforms = map(transform_from_dict, (self.dataset_metadata or {}).get("transforms", ()))
        done = transforms_of(self.env) if self._can_collect() else []  # type: ignore[arg-type]
        return reward_factor_and_shift(transform for transform in transforms if transform.name not in done)

    def _n_offline_of(self, total_timesteps: int) -> int:
        """How many of the timesteps are gradient steps on the dataset."""
        if self.n_offline_steps is None:
            return total_timesteps
        n_offline = min(max(self.n_offline_steps - self._n_offline_done, 0), total_timesteps)
        if n_offline < total_timesteps and self.env is None:
            raise ValueError(
                f"n_offline_steps={self.n_offline_steps} leaves {total_timesteps - n_offline} of {total_timesteps} "
                "steps for an environment, and there is none: model.set_env(env), or n_offline_steps=None."
            )
        return n_offline

    @contextmanager
    def _environment(self) -> Iterator[None]:
        """SB3's set-up and callbacks ask for an environment; without one they get one that cannot be used."""
        if self.env is not None:
            yield
            return
        self.env = _NoEnvironment(self.observation_space, self.action_space)
        try:
            yield
        finally:
            if isinstance(self.env, _NoEnvironment):  # a callback may have set one
                self.env, self._last_obs = None, None

    def _can_collect(self) -> bool:
        return self.env is not None and not isinstance(self.env, _NoEnvironment)

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        self._check_hierarchy()  # arguments may have been changed on the model
        if self.dataset_buffer is not None:
            self._initialise_normalization()
        # Looked up for each collected reward
        self._factor, self._shift = self._reward_change
        return super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)

    def _learn_offline(self, n_steps: int, callback: BaseCallback, log_interval: int | None) -> bool:
        """Gradient steps on the dataset; False if a callback stopped them."""
        metrics = Metrics()
        assert n_steps == 0 or self.dataset_buffer is not None
        while n_steps > 0:
            chunk = min(n_steps, CHUNK)
            assert self.dataset_buffer is not None
            batches = self._sample_batches(self.dataset_buffer, chunk, self.batch_size)
            noise = self._noise(chunk, self.batch_size)
            self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
            self._update_schedules()
            for i in range(chunk):
                batch = map_samples(lambda x, i=i: x[i : i + 1], batches)
                metrics.extend(self._run_updates(batch, None if noise is None else noise[i : i + 1]))
                self._n_offline_done += 1
                self.num_timesteps += 1
                if log_interval is not None and self._n_updates % (LOG_STEPS * log_interval) == 0:
                    self._dump_offline(metrics)
                    metrics = Metrics()
                # As online, where one call stands for a step of each environment: frequencies of callbacks rely on it
                if self._n_offline_done % self.n_envs == 0:
                    callback.update_locals({**locals(), **NO_TRANSITIONS})
                    if not callback.on_step():
                        self._dump_offline(metrics)
                        return False
            n_steps -= chunk
        self._dump_offline(metrics)
        return True

    def _dump_offline(self, metrics: Metrics) -> None:
        if not metrics.seal().means():
            return
        self._log_metrics(metrics)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.dump_logs()

    def _learn_online(self, total_timesteps: int, callback: BaseCallback, log_interval: int | None) -> None:
        """The loop of ``OffPolicyAlgorithm.learn``."""
        assert self.env is not None and isinstance(self.train_freq, TrainFreq)
        if self.num_timesteps < total_timesteps:
            self._start_in_new_environment()
        while self.num_timesteps < total_timesteps:
            assert self.replay_buffer is not None
            rollout = self.collect_rollouts(
                self.env,
                train_freq=self.train_freq,
                action_noise=self.action_noise,
                callback=callback,
                learning_starts=0,  # the policy knows better than random actions
                replay_buffer=self.replay_buffer,
                log_interval=log_interval,
            )
            if not rollout.continue_training:
                return
            if self._n_collected > self.learning_starts:
                n_updates = self.gradient_steps if self.gradient_steps >= 0 else rollout.episode_timesteps
                if n_updates > 0:
                    self.train(n_updates, self.batch_size)

    def _start_in_new_environment(self) -> None:
        """Where a callback has set one since ``learn`` began, what that did for the former environment."""
        assert self.env is not None
        if self._last_obs is not None and self.replay_buffer is not None:
            return
        self._check_environment()
        self._factor, self._shift = self._reward_change
        if self.replay_buffer is None:
            self.replay_buffer = self._make_replay_buffer()
        if self.dataset_buffer is not None:
            self._initialise_normalization()
        self._last_obs = self.env.reset()  # type: ignore[assignment]
        self._last_episode_starts = np.ones((self.env.num_envs,), dtype=bool)
        if self._vec_normalize_env is not None:
            self._last_original_obs = self._vec_normalize_env.get_original_obs()

    def train(self, gradient_steps: int, batch_size: int = 256) -> None:
        """
        Updates on batches that mix the dataset and collected transitions, or of the dataset alone where there are none.

        :param gradient_steps: number of updates
        :param batch_size: rows of each batch
        """
        if not hasattr(self, "_logger"):  # `train` without `learn`
            self.set_logger(configure(None, []))
        self._update_schedules()
        is_mixed = self.replay_buffer is not None and self.replay_buffer.size() > 0
        share = self.offline_ratio if is_mixed else 1.0
        if share > 0:
            self._require_dataset()
        metrics = Metrics()
        while gradient_steps > 0:
            chunk = min(gradient_steps, CHUNK)
            batches = self._sample_mixed_batches(chunk, batch_size, share)
            noise = self._noise(chunk, batch_size)
            metrics.extend(self._run_updates(batches, noise))
            gradient_steps -= chunk
        self._log_metrics(metrics.seal())
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _run_updates(self, batches: Samples, noise: th.Tensor | None) -> Metrics:
        """One update for each of the batches of shape ``(n_batches, batch_size, ...)``; one launch on a GPU."""
        first = self._n_updates + 1
        self._n_updates += len(batches.rewards)
        names = tuple(self._update_name(n) for n in range(first, self._n_updates + 1))
        with self.engine.session():
            return self.engine.loop(self._update_loop, names, batches, noise)

    def _update_loop(self, names: tuple[str, ...], batches: Samples, noise: th.Tensor | None) -> Metrics:
        metrics = Metrics()
        for i, (name, batch) in enumerate(zip(names, unstack(batches), strict=True)):
            metrics.add(self.engine.run(getattr(self, name), batch, None if noise is None else noise[i]))
        return metrics.seal()

    def _noise(self, n_updates: int, batch_size: int) -> th.Tensor | None:
        """Shape ``(n_updates, n_noise, batch_size, action_size)``."""
        if self.n_noise == 0:
            return None
        shape = (n_updates, self.n_noise, batch_size, action_size(self.actor.action_space))
        return th.randn(shape, device=self.device)

    def _sample_batches(self, buffer: ReplayBuffer, n_batches: int, batch_size: int) -> Samples:
        samples = super()._sample_batches(buffer, n_batches, batch_size)
        return samples._replace(actions=encode_actions(samples.actions, self.action_space))

    def _update_schedules(self) -> None:
        """What changes with the progress of ``learn``."""
        self._update_learning_rate(self._optimizers())

    def _update_name(self, n: int) -> str:
        """The method that the n-th update is, where not all are alike."""
        return "_update"

    def _update(self, batch: Samples, noise: th.Tensor | None) -> dict[str, th.Tensor]:
        """One update of everything; returns metrics."""
        raise NotImplementedError

    def _planned_updates(self, n_timesteps: int) -> int:
        return n_timesteps * max(self.gradient_steps, 1)

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: np.ndarray,
        new_obs: np.ndarray | dict[str, np.ndarray],
        reward: np.ndarray,
        dones: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        position = replay_buffer.pos
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)
        # As the dataset's rewards were; after storing, since VecNormalize has the raw ones
        replay_buffer.rewards[position] = replay_buffer.rewards[position] * self._factor + self._shift
        self._n_collected += len(dones)

    # --- Saving ------------------------------------------------------------------------------------------------------

    def _excluded_save_params(self) -> list[str]:
        excluded = [*super()._excluded_save_params(), *NETWORKS]
        # A name finds its data again; arrays would end up in the zip
        return excluded if isinstance(self.dataset, (str, os.PathLike)) else [*excluded, "dataset"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        names = [name for name in ("actor", "critic", "value", "low_level") if hasattr(self, name)]
        return ["policy", *(f"{name}.optimizer" for name in names)], []


def _are_alike(space: spaces.Space, other: spaces.Space) -> bool:
    """Whether two spaces have vectors of floats of one length in them, and differ otherwise."""
    return (
        all(isinstance(one, spaces.Box) and np.issubdtype(one.dtype, np.floating) for one in (space, other))
        and space.shape == other.shape
        and space != other
    )


class _NoEnvironment(DummyVecEnv):
    """Holds the place of an environment while a model learns without one."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space):
        self.envs: list[Any] = []
        self.num_envs, self.observation_space, self.action_space = 1, observation_space, action_space
        self.render_mode = None
        self.reset_infos: list[dict[str, Any]] = [{}]
        self._seeds: list[int | None] = [None]
        self._options: list[dict[str, Any]] = [{}]

    def reset(self) -> Any:
        return None

    def step_async(self, actions: np.ndarray) -> None:
        raise RuntimeError("This model learns from its dataset; it has no environment.")
