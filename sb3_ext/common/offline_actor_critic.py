"""What the offline algorithms with critics share: targets, the Bellman loss, optimizers, delayed actors."""

import math
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize

from sb3_ext.common.actors import GaussianActor, cloning_log_prob, set_deterministic
from sb3_ext.common.buffers import Samples
from sb3_ext.common.ensemble import EnsembleCritic
from sb3_ext.common.episode_memory import EpisodeMemory
from sb3_ext.common.losses import ensemble_mse, td_target
from sb3_ext.common.off_policy import Metrics
from sb3_ext.common.offline_algorithm import OfflineAlgorithm
from sb3_ext.common.schedules import as_schedule
from sb3_ext.datasets.dataset import Dataset
from sb3_ext.datasets.load import DatasetLike

Scalars = dict[str, th.Tensor]

# Rows of the data that the sizes of subgoals are taken from
SIZES_SAMPLE = 20_000


class OfflineActorCritic(OfflineAlgorithm):
    """
    Base class of algorithms with ``actor``, ``critic`` (an ensemble) and ``critic_target``. With a
    :class:`~sb3_ext.common.hierarchical_policy.HierarchicalPolicy` those are the high level's: for them states are the
    first entries of the observation, and actions subgoals that n steps of the data came to. ``low_level`` clones the
    data's actions.

    :param policy: see :class:`~sb3_ext.common.offline_algorithm.OfflineAlgorithm`, as all further arguments
    :param env: Environment for online training, or None.
    :param dataset: Whatever :func:`sb3_ext.datasets.load` takes.
    :param actor_learning_rate: Learning rate of the actor, and of a hierarchy's low level, such as ``"cos_3e-4"`` (a
        cosine to 0); ``learning_rate`` if None.
    :param kwargs: Arguments of :class:`~sb3_ext.common.offline_algorithm.OfflineAlgorithm`.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {}
    # Arguments that hold on to the data's actions and may follow a schedule; updates read `self._bc_coefs`
    bc_coef_names: ClassVar[tuple[str, ...]] = ()
    actor: Any
    critic: EnsembleCritic
    critic_target: EnsembleCritic
    policy: Any
    low_level: GaussianActor
    # Whether what acts regresses to actions, instead of learning a distribution of them
    deterministic_actor = False
    # What the sizes of subgoals were taken for, n_steps and the quantile; saved with the model
    _sized_for: list[float | None] | None = None
    # Whether a memory has the places of this dataset's, normalised as observations are
    _knows_goals = False

    def __init__(
        self,
        policy: str | type[BasePolicy],
        env: GymEnv | str | None = None,
        dataset: DatasetLike | None = None,
        *,
        actor_learning_rate: float | str | Schedule | None = None,
        **kwargs: Any,
    ):
        self.actor_learning_rate = actor_learning_rate
        super().__init__(policy, env, dataset, **kwargs)

    def _check_arguments(self) -> None:
        super()._check_arguments()
        if self.actor_learning_rate is not None:
            as_schedule(self.actor_learning_rate, "actor_learning_rate")
        for name in self.bc_coef_names:
            as_schedule(getattr(self, name), name)

    def _setup_model(self) -> None:
        super()._setup_model()
        # Tensors, since an update that is compiled has numbers as constants
        self._bc_coefs = {
            name: th.tensor(value, device=self.device) for name, value in self._current_bc_coefs().items()
        }
        if self._is_hierarchical:
            set_deterministic(self.low_level, self.deterministic_actor)

    def _scheduled(self, name: str) -> float:
        """What an argument that may follow a schedule is now."""
        progress = self._current_progress_remaining
        value = as_schedule(getattr(self, name), name)(progress)
        if not value >= 0:
            raise ValueError(f"{name} is {value} with {progress:.2f} of `learn` left: it must not be negative.")
        return value

    def _current_bc_coefs(self) -> dict[str, float]:
        return {name: self._scheduled(name) for name in self.bc_coef_names}

    def _update_schedules(self) -> None:
        super()._update_schedules()
        for name, value in self._current_bc_coefs().items():
            self._bc_coefs[name].fill_(value)
            self.logger.record(f"train/{name}", value)
        if self.actor_learning_rate is not None:
            rate = self._scheduled("actor_learning_rate")
            for optimizer in self._actor_optimizers():
                optimizer.param_groups[0]["lr"] = rate
            self.logger.record("train/actor_learning_rate", rate)

    def _bellman_loss(self, batch: Samples, q_values: th.Tensor, next_values: th.Tensor) -> tuple[th.Tensor, Scalars]:
        """
        :param q_values: of the batch's actions, ``(n_critics, batch, 1)``
        :param next_values: ``(batch, 1)``, without a gradient
        """
        loss = ensemble_mse(q_values, td_target(batch.rewards, batch.dones, self._discounts(batch), next_values))
        return loss, {"critic_loss": loss.detach(), "q_mean": q_values.detach().mean()}

    def _optimizers(self) -> list[th.optim.Optimizer]:
        return [*self._actor_optimizers(), self.critic.optimizer]

    def _actor_optimizers(self) -> list[th.optim.Optimizer]:
        """Of all that acts."""
        return [self.actor.optimizer, *([self.low_level.optimizer] if self._is_hierarchical else [])]

    def _update_constants(self) -> tuple[Any, ...]:
        return self.gamma, self.tau

    # --- Where to go, and how ----------------------------------------------------------------------------------------

    def _check_hierarchy(self) -> None:
        super()._check_hierarchy()
        if not self._is_hierarchical:
            return
        if self.n_steps == 1:
            raise ValueError(
                "HierarchicalPolicy says where to be n_steps later, and n_steps is 1: 20 to 50, say, is what it is for."
            )
        # Discounts are float32
        if not self.gamma <= 1 - 1e-6 or self.gamma**self.n_steps < 1e-30:
            raise ValueError(
                f"HierarchicalPolicy counts n_steps={self.n_steps} by discounts: gamma={self.gamma} must be in (0, 1), "
                "and far enough from both that gamma to the power of n_steps is neither 1 nor 0."
            )
        if self.replay_buffer_class is not None and not self._chose_buffer:
            raise ValueError(
                f"HierarchicalPolicy needs a buffer that goes n_steps={self.n_steps} by itself: leave "
                f"replay_buffer_class={self.replay_buffer_class.__name__} out."
            )
        self._check_normalization(self._vec_normalize_env)

    def _check_normalization(self, normalize: VecNormalize | None) -> None:
        if self.policy_kwargs.get("symmetry") is not None and normalize is not None and normalize.norm_obs:
            raise ValueError(
                "symmetry turns quaternions, and VecNormalize changes them: VecNormalize(..., norm_obs=False), and "
                "standardize_observations=True instead."
            )

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """As :meth:`OfflineAlgorithm.set_env`."""
        if isinstance(env, VecEnv):
            self._check_normalization(unwrap_vec_normalize(env))
        super().set_env(env, force_reset)

    def _attach(self, dataset: Dataset) -> None:
        if self._is_hierarchical and self.policy.body is not None:
            self.policy.body.check_observations(dataset.observations)
        super()._attach(dataset)
        self._knows_goals = False
        assert self.dataset_buffer is not None
        if self._memory is not None and len(self.dataset_buffer.goal_observations()) == 0:
            raise ValueError(
                f"memory_radius={self._memory.radius} searches the data's goals, which takes rewards of two "
                "values, and episodes that end with the higher one. These data have none: leave memory_radius out."
            )

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        self._knows_goals = False  # another environment may normalise otherwise
        return super()._setup_learn(*args, **kwargs)

    def train(self, gradient_steps: int, batch_size: int = 256) -> None:
        """As :meth:`OfflineAlgorithm.train`."""
        if self._vec_normalize_env is not None and self._vec_normalize_env.training:
            self._knows_goals = False  # what was collected has moved its statistics
        super().train(gradient_steps, batch_size)

    def _run_updates(self, batches: Samples, noise: th.Tensor | None) -> Metrics:
        # Not before the first update: until then another environment may bring a VecNormalize
        if self._is_hierarchical and self._sized_for != self._sizes:
            self._take_subgoal_sizes()
        if self._memory is not None:
            self._take_goals(self._memory)
        return super()._run_updates(batches, noise)

    @property
    def _memory(self) -> EpisodeMemory | None:
        return self.policy.memory if self._is_hierarchical else None

    @property
    def _sizes(self) -> list[float | None]:
        return [self.n_steps, self.policy.subgoal_quantile]

    def _take_subgoal_sizes(self) -> None:
        """Subgoals of the data, for ``n_steps`` as it is, become actions in [-1, 1]."""
        self._require_dataset()
        assert self.dataset_buffer is not None
        sample = self._sample_batches(self.dataset_buffer, 1, SIZES_SAMPLE)
        _, _, ways = self._ways(sample)
        assert isinstance(sample.observations, th.Tensor)
        self.policy.take_sizes(sample.observations.squeeze(0), ways.squeeze(0), self.n_steps)
        self._sized_for, self._knows_goals = self._sizes, False

    def _take_goals(self, memory: EpisodeMemory) -> None:
        """Unless it has them; nothing where no data are attached."""
        if self._knows_goals or self.dataset_buffer is None:
            return
        goals = self.policy.features(self.dataset_buffer.goal_observations(self._vec_normalize_env))
        memory.take_goals(self.policy.where(goals) / self.policy.subgoal_scale)
        self._knows_goals = True

    def _update_loop(self, names: tuple[str, ...], batches: Samples, noise: th.Tensor | None) -> Metrics:
        if not self._is_hierarchical:
            return super()._update_loop(names, batches, noise)
        now, later, ways = self._ways(batches)
        subgoals = self.policy.subgoals(ways)
        where, where_later = self.policy.where(now), self.policy.where(later)
        of_subgoals = batches._replace(observations=where, actions=subgoals, next_observations=where_later)
        metrics = Metrics()
        metrics.extend(super()._update_loop(names, of_subgoals, noise))
        # How to get somewhere is learnt from all ways, wherever they led
        examples = self.policy.low_level_examples(batches.observations, now, subgoals, batches.actions)
        for inputs, actions in zip(*examples, strict=True):
            metrics.add(self.engine.run(self._update_low_level, inputs, actions))
        return metrics.seal()

    @th.no_grad()
    def _ways(self, batches: Samples) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        :return: features now and after n steps, ``(..., obs_dim)``, and by how much the first ones differ; where an
            episode ended after k < n steps n / k as much, ``(..., subgoal_entries)``
        """
        now, later = self.policy.features(batches.observations), self.policy.features(batches.next_observations)
        assert batches.discounts is not None
        steps = (batches.discounts.log() / math.log(self.gamma)).round()
        return now, later, self.policy.where(later - now) * (self.n_steps / steps)

    def _update_low_level(self, inputs: th.Tensor, actions: th.Tensor) -> Scalars:
        """
        :param inputs: what the low level sees, ``(batch, n_inputs)``
        """
        loss = -cloning_log_prob(self.low_level.distribution(inputs), actions, self.low_level.is_deterministic).mean()
        self.engine.minimize(loss, self.low_level.optimizer)
        return {"low_level_loss": loss.detach()}

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_bc_coefs"]
