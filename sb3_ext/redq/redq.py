import os
from collections.abc import Iterator
from itertools import repeat
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim, get_flattened_obs_dim
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.sac import SAC

from sb3_ext.common.actors import SquashedGaussianActor, TruncatedNormalActor
from sb3_ext.common.buffers import Samples
from sb3_ext.common.demonstrations import DemonstrationsMixin
from sb3_ext.common.ensemble import EnsembleCritic, draw_members
from sb3_ext.common.entropy import EntropyCoefficientMixin
from sb3_ext.common.losses import behaviour_cloning_loss, ensemble_mse, mean_q_actor_loss, td_target
from sb3_ext.common.off_policy import Metrics, unstack
from sb3_ext.common.policies import CnnPolicy, EnsemblePolicy, MlpPolicy, MultiInputPolicy
from sb3_ext.common.schedules import as_schedule
from sb3_ext.datasets.load import DatasetLike
from sb3_ext.redq.policies import (
    TruncatedNormalCnnPolicy,
    TruncatedNormalMultiInputPolicy,
    TruncatedNormalPolicy,
)

SelfREDQ = TypeVar("SelfREDQ", bound="REDQ")

# Batches that are drawn in one gather, and the memory that they may take
MAX_BATCHES = 100
MAX_BATCHES_BYTES = 64 * 2**20

Scalars = dict[str, th.Tensor]

# Kinds of updates
CRITIC, CRITIC_AND_ACTOR, CLONING = "critic", "critic and actor", "cloning"


class REDQ(EntropyCoefficientMixin, DemonstrationsMixin, SAC):
    r"""
    Randomised Ensembled Double Q-learning (Chen et al. 2021, https://arxiv.org/abs/2101.05982), with demonstrations.

    Each of :math:`N` critics regresses on a target that takes the minimum over a random subset :math:`\mathcal{M}` of
    the target critics, drawn anew for each update; the actor maximises the mean of all critics:

    .. math::
        y = r + \gamma (1 - d) \Big(\min_{i \in \mathcal{M}} \bar Q_i(s', a') - \alpha \log \pi(a'|s')\Big), \quad
        L_Q = \tfrac{1}{2} \sum_{k=1}^N (Q_k(s, a) - y)^2, \quad
        L_\pi = \alpha \log \pi(a|s) - \tfrac{1}{N} \sum_{k=1}^N Q_k(s, a)

    Without demonstrations this is the paper's algorithm. With them the actor first clones them
    (``bc_pretrain_steps``), goes on cloning between its own steps (``bc_gradient_steps``, ``bc_coef``), and critics
    train on batches of both sources (``demo_ratio``; 0.5 is the symmetric sampling of RLPD, Ball et al. 2023,
    https://arxiv.org/abs/2302.02948). ``policy_kwargs=dict(layer_norm=True, dropout=0.01)`` gives DroQ's critics
    (Hiraoka et al. 2021, https://arxiv.org/abs/2110.02034).

    Differences from SB3's ``SAC``: ``utd_ratio`` and ``policy_delay`` replace ``gradient_steps`` and
    ``target_update_interval``, target networks move at every critic update, and there is no gSDE.

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"`` or ``"MultiInputPolicy"`` with SAC's squashed Gaussian actor;
        ``"TruncatedNormalMlpPolicy"``, ``"TruncatedNormalCnnPolicy"`` or ``"TruncatedNormalMultiInputPolicy"`` with a
        tanh mean and a fixed standard deviation.
    :param env: The environment to learn from (if registered in Gym, can be a string). Its actions are a Box.
    :param learning_rate: Learning rate of all networks: a number, ``"lin_3e-4"`` (down to 0 at the end of ``learn``) or
        a function of the remaining progress, which goes from 1 to 0.
    :param buffer_size: Size of the replay buffer in transitions; demonstrations do not count.
    :param learning_starts: Steps with random actions and no updates. An actor that has cloned demonstrations acts by
        itself from the first step.
    :param batch_size: Rows of each batch.
    :param tau: Polyak coefficient in (0, 1] of the target critics, applied at every critic update.
    :param gamma: Discount factor in [0, 1].
    :param train_freq: Train every ``train_freq`` steps, or a tuple like ``(1, "episode")``.
    :param utd_ratio: Update-to-data ratio: critic updates per environment transition, whatever the number of
        environments and ``train_freq``. Positive; fractions add up.
    :param n_critics: Number of critics :math:`N`.
    :param n_target_critics: Size of the random subset for the target, from 1 to ``n_critics``.
    :param policy_delay: Critic updates per actor update. None means ``utd_ratio``, rounded: one actor update per
        transition where that is an integer.
    :param action_noise: Noise added to the actions in the environment, besides the actor's own.
    :param replay_buffer_class: Replay buffer class, chosen automatically if None.
    :param replay_buffer_kwargs: Keyword arguments of the replay buffer.
    :param optimize_memory_usage: Memory-efficient variant of the replay buffer.
    :param n_steps: Steps of the n-step return, for demonstrations too.
    :param ent_coef: Entropy coefficient :math:`\alpha`: a number, or ``"auto"`` (``"auto_0.1"`` with a first value) to
        learn it. The truncated-normal actor's entropy is fixed: there ``"auto"`` is 0 and other numbers are an error.
    :param target_entropy: Target of the learnt coefficient; ``"auto"`` is minus the number of action dimensions.
    :param demos: Demonstrations: a Minari id, a path, ``"scripted:10"``, arrays or
        :class:`~sb3_ext.datasets.Dataset`, see :func:`~sb3_ext.datasets.load_demonstrations`. Actions are in the
        environment's own units. A name is kept in the saved model, data is not.
    :param demo_ratio: Share in [0, 1] of each critic and actor batch that comes from the demonstrations.
    :param bc_pretrain_steps: Cloning steps before the first environment step.
    :param bc_gradient_steps: Cloning steps per environment transition, after the actor's own.
    :param bc_coef: Factor of the cloning loss during RL: a number, ``"lin_1.0"`` (down to 0 at the end of ``learn``) or
        a function of the remaining progress.
    :param standardize_observations: Standardise observations by mean and standard deviation of the demonstrations,
        inside the policy: frozen, saved with the model, and ``predict`` takes raw observations. For vectors only.
    :param update_backend: ``"eager"``, ``"compiled"`` (each update compiled once, needs a C++ compiler),
        ``"cudagraph"``, or ``"auto"``: on a GPU CUDA graphs, on a CPU compiled where the run is long enough to pay it
        back. All give the same numbers up to rounding; see :class:`~sb3_ext.common.engine.UpdateEngine`.
    :param matmul_precision: ``"fp32"``, or ``"bf16"`` for faster, coarser matrix products in the updates.
    :param stats_window_size: Window of the rollout logging, in episodes.
    :param tensorboard_log: The log location for TensorBoard (if None, no logging).
    :param policy_kwargs: Arguments of the policy, see :class:`~sb3_ext.common.policies.EnsemblePolicy`.
    :param verbose: 0 no output, 1 info, 2 debug.
    :param seed: Seed for the pseudo random generators.
    :param device: Device (cpu, cuda, ...) to run on, ``"auto"`` takes the GPU if there is one.
    :param _init_setup_model: Whether or not to build the networks at the creation of the instance.
    :raises ValueError: an argument is out of its range, the action space is no Box, or demonstrations and their uses
        do not fit together.
    :raises sb3_ext.datasets.DatasetError: demonstrations are missing, broken or of another environment.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
        "TruncatedNormalMlpPolicy": TruncatedNormalPolicy,
        "TruncatedNormalCnnPolicy": TruncatedNormalCnnPolicy,
        "TruncatedNormalMultiInputPolicy": TruncatedNormalMultiInputPolicy,
    }
    policy: EnsemblePolicy
    actor: SquashedGaussianActor | TruncatedNormalActor  # type: ignore[assignment]
    critic: EnsembleCritic  # type: ignore[assignment]
    critic_target: EnsembleCritic  # type: ignore[assignment]

    def __init__(
        self,
        policy: str | type[EnsemblePolicy],
        env: GymEnv | str,
        learning_rate: float | str | Schedule = 3e-4,
        buffer_size: int = 1_000_000,
        learning_starts: int = 100,
        batch_size: int = 256,
        tau: float = 0.005,
        gamma: float = 0.99,
        train_freq: int | tuple[int, str] = 1,
        utd_ratio: float = 20,
        n_critics: int = 10,
        n_target_critics: int = 2,
        policy_delay: int | None = None,
        action_noise: ActionNoise | None = None,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        optimize_memory_usage: bool = False,
        n_steps: int = 1,
        ent_coef: str | float = "auto",
        target_entropy: str | float = "auto",
        demos: DatasetLike | None = None,
        demo_ratio: float = 0.0,
        bc_pretrain_steps: int = 0,
        bc_gradient_steps: int = 0,
        bc_coef: float | str | Schedule = 1.0,
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
        try:
            super().__init__(
                policy,  # type: ignore[arg-type]
                env,
                learning_rate,  # type: ignore[arg-type]
                buffer_size,
                learning_starts,
                batch_size,
                tau,
                gamma,
                train_freq,
                gradient_steps=-1,  # `train` is told how many transitions were collected
                action_noise=action_noise,
                replay_buffer_class=replay_buffer_class,
                replay_buffer_kwargs=replay_buffer_kwargs,
                optimize_memory_usage=optimize_memory_usage,
                n_steps=n_steps,
                ent_coef=ent_coef,
                target_entropy=target_entropy,
                stats_window_size=stats_window_size,
                tensorboard_log=tensorboard_log,
                policy_kwargs=policy_kwargs,
                verbose=verbose,
                seed=seed,
                device=device,
                _init_setup_model=False,
            )
        except AssertionError as error:
            if "as action spaces" not in str(error):
                raise
            raise ValueError(
                f"REDQ needs a continuous (Box) action space. {error} Use DQN or QR-DQN for discrete actions."
            ) from error
        self.utd_ratio = utd_ratio
        self.n_critics = n_critics
        self.n_target_critics = n_target_critics
        self.policy_delay = policy_delay
        self.demos = os.fspath(demos) if isinstance(demos, os.PathLike) else demos
        self.demo_ratio = demo_ratio
        self.bc_pretrain_steps = bc_pretrain_steps
        self.bc_gradient_steps = bc_gradient_steps
        self.bc_coef = bc_coef
        self.standardize_observations = standardize_observations
        self.update_backend = update_backend
        self.matmul_precision = matmul_precision
        # Critic updates that are due and not done yet: the fractions of a `utd_ratio` that is no integer
        self._updates_due = 0.0
        self._bc_pretrain_steps_done = 0

        if _init_setup_model:
            self._check_device()
            self._setup_model()
            self._load_demos()

    def _setup_model(self) -> None:
        self._check_arguments()
        if isinstance(self.learning_rate, str):
            self.learning_rate = as_schedule(self.learning_rate, "learning_rate")
        self.bc_schedule = as_schedule(self.bc_coef, "bc_coef")
        self.policy_kwargs = {**self.policy_kwargs, "n_critics": self.n_critics}
        self.policy_kwargs.pop("use_sde", None)  # set by SB3, which believes that every SAC has gSDE
        if issubclass(self.policy_class, TruncatedNormalPolicy):
            if self.ent_coef not in ("auto", 0):
                raise ValueError(
                    f"ent_coef={self.ent_coef!r}: the truncated-normal actor's standard deviation is fixed, so that "
                    "an entropy bonus changes nothing but the values. Leave ent_coef out or set it to 0."
                )
            self.ent_coef = 0.0
        super()._setup_model()

    def _check_arguments(self) -> None:
        n_policy_critics = self.policy_kwargs.get("n_critics", self.n_critics)
        if n_policy_critics != self.n_critics:
            raise ValueError(
                f"n_critics={self.n_critics}, but policy_kwargs has n_critics={n_policy_critics}: give a new model "
                "REDQ's argument n_critics alone; the ensemble of a saved model keeps its size."
            )
        for name in ("n_critics", "n_target_critics", "policy_delay", "bc_pretrain_steps", "bc_gradient_steps"):
            value = getattr(self, name)
            if not isinstance(value, (int, np.integer)) and not (name == "policy_delay" and value is None):
                raise ValueError(f"{name}={value!r} must be an integer.")
        if self.n_critics < 1:
            raise ValueError(f"n_critics={self.n_critics} must be at least 1.")
        if not 1 <= self.n_target_critics <= self.n_critics:
            raise ValueError(
                f"n_target_critics={self.n_target_critics} critics are drawn out of n_critics={self.n_critics}: it "
                f"must be between 1 and {self.n_critics}."
            )
        if not self.utd_ratio > 0:
            raise ValueError(f"utd_ratio={self.utd_ratio} critic updates per transition must be positive.")
        if self.policy_delay is not None and self.policy_delay < 1:
            raise ValueError(f"policy_delay={self.policy_delay} critic updates per actor update must be at least 1.")
        for name in ("bc_pretrain_steps", "bc_gradient_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0.")

    def _demo_uses(self) -> dict[str, float]:
        return {
            **super()._demo_uses(),
            "bc_pretrain_steps": self.bc_pretrain_steps,
            "bc_gradient_steps": self.bc_gradient_steps,
        }

    def _demo_needs(self) -> dict[str, float]:
        return {**super()._demo_needs(), "bc_pretrain_steps": self._pretrain_steps_left()}

    def _pretrain_steps_left(self) -> int:
        # Once: a model that is loaded with another number does not clone over what it has learnt
        return self.bc_pretrain_steps if self._bc_pretrain_steps_done == 0 else 0

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        setup = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        if self._pretrain_steps_left() > 0:
            self._pretrain(self.bc_pretrain_steps)
        return setup

    def _pretrain(self, n_steps: int) -> None:
        """Clone the demonstrations for ``n_steps`` steps."""
        if self.verbose > 0:
            print(f"Cloning the demonstrations: {n_steps} steps")
        self._update_learning_rate([self.actor.optimizer])
        assert self.dataset_buffer is not None
        coef = th.ones((), device=self.device)
        max_chunk = self._max_batches()
        while n_steps > 0:
            chunk = min(n_steps, max_chunk)
            batches = self._sample_batches(self.dataset_buffer, chunk, self.batch_size)
            with self.engine.session():
                metrics = self.engine.loop(self._cloning_loop, (chunk,), batches, coef)
            self._bc_pretrain_steps_done += chunk
            n_steps -= chunk
        self._log_metrics(metrics)
        self.logger.dump(step=self.num_timesteps)

    def _max_batches(self) -> int:
        """Batches that are drawn in one gather, so that a long call of ``train`` takes little memory."""
        batch_bytes = 2 * 4 * self.batch_size * get_flattened_obs_dim(self.observation_space)
        return min(max(MAX_BATCHES_BYTES // batch_bytes, 1), MAX_BATCHES)

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        if self._bc_pretrain_steps_done > 0:
            learning_starts = 0  # the clone knows better than random actions
        return super()._sample_action(learning_starts, action_noise, n_envs)

    def train(self, gradient_steps: int, batch_size: int = 256) -> None:
        """
        Do the updates that are due after new transitions.

        :param gradient_steps: number of new transitions, each worth ``utd_ratio`` critic updates (SB3's name for what
            ``learn`` passes)
        :param batch_size: rows of each batch
        """
        if not hasattr(self, "_logger"):  # `train` without `learn`
            self.set_logger(configure(None, []))
        self._update_learning_rate(self._optimizers())
        bc_coef = self.bc_schedule(self._current_progress_remaining) if self.bc_gradient_steps > 0 else 0.0
        n_updates_before = self._n_updates

        with self.engine.session():
            for pattern in self._due_updates(gradient_steps, clones=bc_coef > 0):
                self._log_metrics(self._train_on(pattern, batch_size, bc_coef))

        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record_mean("train/utd", (self._n_updates - n_updates_before) / gradient_steps)
        if self.bc_gradient_steps > 0:
            self.logger.record("train/bc_coef", bc_coef)

    def _due_updates(self, n_transitions: int, clones: bool) -> Iterator[tuple[str, ...]]:
        """The sequence of updates that so many transitions are worth, in pieces of bounded length."""
        policy_delay = self.policy_delay or max(round(self.utd_ratio), 1)
        pattern: list[str] = []
        for _ in range(n_transitions):
            self._updates_due += self.utd_ratio
            while self._updates_due >= 1:
                self._updates_due -= 1
                self._n_updates += 1
                pattern.append(CRITIC if self._n_updates % policy_delay else CRITIC_AND_ACTOR)
            if clones:
                pattern += [CLONING] * self.bc_gradient_steps
            length = self._max_batches()
            while len(pattern) >= length:
                yield tuple(pattern[:length])
                del pattern[:length]
        if pattern:
            yield tuple(pattern)

    def _train_on(self, pattern: tuple[str, ...], batch_size: int, bc_coef: float) -> Metrics:
        """Draw all batches and all randomness of a sequence of updates, and run it."""
        n_cloning = pattern.count(CLONING)
        n_updates = len(pattern) - n_cloning
        batches, bc_batches, bc_coef_tensor = None, None, None
        if n_updates > 0:
            batches = self._sample_mixed_batches(n_updates, batch_size, self.demo_ratio)
        if n_cloning > 0:
            assert self.dataset_buffer is not None
            bc_batches = self._sample_batches(self.dataset_buffer, n_cloning, batch_size)
            bc_coef_tensor = th.full((), bc_coef, device=self.device)
        subsets = draw_members(n_updates, self.n_critics, self.n_target_critics, self.device)
        # For the target's actions and for the actor's
        noise = th.randn(n_updates, 2, batch_size, get_action_dim(self.action_space), device=self.device)
        return self.engine.loop(self._update_loop, pattern, batches, subsets, noise, bc_batches, bc_coef_tensor)

    # --- Updates: no random numbers, no look at values, so that the engine can compile and capture them --------------

    def _update_loop(
        self,
        pattern: tuple[str, ...],
        batches: Samples | None,
        subsets: th.Tensor | None,
        noise: th.Tensor,
        bc_batches: Samples | None,
        bc_coef: th.Tensor | None,
    ) -> Metrics:
        """The updates that ``pattern`` names, each on its own batch."""
        metrics = Metrics()
        updates = zip(unstack(batches), noise, repeat(None) if subsets is None else subsets, strict=False)
        cloning_batches = unstack(bc_batches)
        functions = {CRITIC: self._update_critic, CRITIC_AND_ACTOR: self._update_critic_and_actor}
        for kind in pattern:
            if kind == CLONING:
                metrics.add(self.engine.run(self._update_by_cloning, next(cloning_batches), bc_coef))
            else:
                metrics.add(self.engine.run(functions[kind], *next(updates)))
        return metrics.seal()

    def _cloning_loop(self, pattern: tuple[int], batches: Samples, coef: th.Tensor) -> Metrics:
        metrics = Metrics()
        for batch in unstack(batches):
            metrics.add(self.engine.run(self._update_by_cloning, batch, coef))
        return metrics.seal()

    def _update_critic_and_actor(self, batch: Samples, noise: th.Tensor, members: th.Tensor | None) -> Scalars:
        return {**self._update_critic(batch, noise, members), **self._update_actor(batch, noise)}

    def _update_critic(self, batch: Samples, noise: th.Tensor, members: th.Tensor | None) -> Scalars:
        loss, metrics = self._critic_loss(batch, noise[0], members)
        self.engine.minimize(loss, self.critic.optimizer)
        self.engine.polyak(self.critic, self.critic_target, self.tau)
        return metrics

    def _update_actor(self, batch: Samples, noise: th.Tensor) -> Scalars:
        actor_loss, ent_coef_loss, metrics = self._actor_loss(batch, noise[1])
        self.engine.minimize(actor_loss, self.actor.optimizer)
        if ent_coef_loss is not None:
            assert self.ent_coef_optimizer is not None
            self.engine.minimize(ent_coef_loss, self.ent_coef_optimizer)
            metrics["ent_coef_loss"] = ent_coef_loss.detach()
        return metrics

    def _update_by_cloning(self, batch: Samples, coef: th.Tensor) -> Scalars:
        loss = behaviour_cloning_loss(self.actor.log_prob(batch.observations, batch.actions))
        self.engine.minimize(coef * loss, self.actor.optimizer)
        return {"bc_loss": loss.detach()}

    def _critic_loss(self, batch: Samples, noise: th.Tensor, members: th.Tensor | None) -> tuple[th.Tensor, Scalars]:
        """
        :param batch: rows of transitions, ``(batch, ...)``
        :param noise: standard normal noise for the next actions, ``(batch, action_dim)``
        :param members: the target critics to take the minimum of, ``(n_target_critics,)``; None for all
        :return: scalar loss, and metrics
        """
        target = self._target(batch, noise, members)
        q_values = self.critic(batch.observations, batch.actions)
        loss = ensemble_mse(q_values, target)
        detached = q_values.detach()
        metrics = {"critic_loss": loss.detach(), "target_q": target.mean(), "q_mean": detached.mean()}
        if self.n_critics > 1:
            metrics["q_std"] = detached.std(dim=0).mean()
        return loss, metrics

    @th.no_grad()
    def _target(self, batch: Samples, noise: th.Tensor, members: th.Tensor | None) -> th.Tensor:
        """Regression target of all critics, shape ``(batch, 1)``, from the target critics ``members``."""
        next_actions, next_log_prob = self.actor.action_log_prob(batch.next_observations, noise)
        next_q_values = self.critic_target(batch.next_observations, next_actions, members)
        # (n_target_critics, batch, 1) -> (batch, 1)
        next_values = next_q_values.amin(dim=0) - self._ent_coef() * next_log_prob.reshape(-1, 1)
        return td_target(batch.rewards, batch.dones, self._discounts(batch), next_values)

    def _actor_loss(self, batch: Samples, noise: th.Tensor) -> tuple[th.Tensor, th.Tensor | None, Scalars]:
        """
        :param batch: rows of transitions, ``(batch, ...)``
        :param noise: standard normal noise for the actions, ``(batch, action_dim)``
        :return: scalar losses of the actor and of a learned entropy coefficient, and metrics
        """
        actions, log_prob = self.actor.action_log_prob(batch.observations, noise)
        log_prob = log_prob.reshape(-1, 1)
        ent_coef = self._ent_coef()
        # The gradient goes through the critics to the actions; their own is not needed
        q_values = self.critic(batch.observations, actions, frozen=True)
        loss = mean_q_actor_loss(q_values, log_prob, ent_coef)
        return loss, self._ent_coef_loss(log_prob), {"actor_loss": loss.detach(), "ent_coef": ent_coef.mean()}

    # --- What the engine asks for ------------------------------------------------------------------------------------

    def _optimizers(self) -> list[th.optim.Optimizer]:
        return [self.actor.optimizer, self.critic.optimizer, *self._ent_coef_optimizers()]

    def _update_constants(self) -> tuple:
        noise = [getattr(self.actor, name, None) for name in ("action_std", "noise_clip")]
        return self.gamma, self.tau, self.n_target_critics, *self._ent_coef_constants(), *noise

    def _planned_updates(self, n_timesteps: int) -> int:
        return int(n_timesteps * (self.utd_ratio + self.bc_gradient_steps)) + self._pretrain_steps_left()

    def learn(
        self: SelfREDQ,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "REDQ",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfREDQ:
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
