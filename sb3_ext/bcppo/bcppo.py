"""BCPPO: PPO anchored to a clone of demonstrations."""

import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.logger import configure
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import (
    GymEnv,
    MaybeCallback,
    PyTorchObs,
    RolloutBufferSamples,
    Schedule,
)
from stable_baselines3.common.utils import explained_variance, obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from sb3_ext.bc import pretraining
from sb3_ext.bcppo.policies import (
    CnnPolicy,
    MlpPolicy,
    MultiInputPolicy,
    TruncatedNormalDistribution,
    TruncatedNormalMlpPolicy,
)
from sb3_ext.common import reference as references
from sb3_ext.common.buffers import DatasetBuffer
from sb3_ext.common.densities import action_log_prob, log_volume, to_buffer
from sb3_ext.common.engine import UpdateEngine
from sb3_ext.common.engine.engine import check_arguments
from sb3_ext.common.losses import (
    behaviour_cloning_loss,
    clipped_surrogate_loss,
    k3_reverse_kl,
    sampled_reverse_kl,
)
from sb3_ext.common.off_policy import Metrics
from sb3_ext.common.schedules import as_schedule, is_whole
from sb3_ext.common.signatures import joint_signature
from sb3_ext.common.standardize import set_statistics, with_standardizing_extractor
from sb3_ext.datasets.dataset import map_observations
from sb3_ext.datasets.errors import DatasetError
from sb3_ext.datasets.load import DatasetLike

Scalars = dict[str, th.Tensor]

KL_ESTIMATORS = {"importance": sampled_reverse_kl, "k3": k3_reverse_kl}
DEFAULT_KL_COEF = 0.1
# A measured KL this many times off its target changes the coefficient by that factor (half of it: Schulman et al. 2017)
KL_TOLERANCE = 1.5
KL_FACTORS = (1e-3, 1e3)
# Cloning steps whose mean loss is logged
LOGGED_LOSSES = 100
# Metrics of the policy as it is now, and not as it was in the first epoch
LAST_EPOCH = ("approx_kl", "reverse_kl", "loss", "std")


class BCPPO(PPO):
    r"""
    PPO (Schulman et al. 2017, https://arxiv.org/abs/1707.06347) after behaviour cloning, held near the clone by the
    reverse KL divergence:

    .. math::
        L = L_{clip} + c_v \mathrm{mean}_b (V(s_b) - R_b)^2 - c_e H(\pi) + \beta\, KL(\pi \| \pi_{ref})

    The reference is a frozen copy of the policy as cloning left it. Without demonstrations and reference it is SB3's
    PPO, with ``update_backend="eager"`` to the last bit.

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"``, ``"MultiInputPolicy"``, ``"TruncatedNormalMlpPolicy"`` or a class.
    :param env: Environment, or its id.
    :param demos: Whatever :func:`sb3_ext.datasets.load` takes, or ``"scripted:10"``.
    :param bc_pretrain_steps: Cloning steps before the first rollout, at least 0.
    :param bc_batch_size: Demonstrated transitions in a batch.
    :param bc_learning_rate: Learning rate of cloning: a number, a schedule, or a string such as ``"lin_1e-3"``.
    :param bc_coef: Factor of the cloning loss in PPO's, at least 0; likewise.
    :param kl_coef: :math:`\beta`, at least 0; likewise. By default 0.1 where there is a reference.
    :param kl_estimator: ``"auto"`` computes the divergence where there is a formula (Gaussian, truncated normal,
        categorical, multi-categorical, Bernoulli) and takes ``"k3"`` elsewhere; ``"importance"`` or ``"k3"`` estimates
        it from the rollout's actions (:func:`~sb3_ext.common.losses.sampled_reverse_kl`,
        :func:`~sb3_ext.common.losses.k3_reverse_kl`).
    :param target_reverse_kl: Divergence to aim at, positive: ``kl_coef`` becomes larger where it is exceeded and
        smaller where it is missed. None leaves it as given.
    :param reference: A model or policy of SB3's to stay near to, in place of the clone. It must have an action
        distribution and the same spaces.
    :param value_warmup_steps: Environment steps whose rollouts improve the value function alone, before the policy
        moves.
    :param accumulate_epoch: One optimizer step an epoch, on the whole rollout in slices of ``batch_size``, in place of
        one for each minibatch. Advantages are normalised over the rollout then.
    :param standardize_observations: Shift and scale observations by the demonstrations' statistics, inside the policy.
    :param freeze_normalization: A ``VecNormalize`` around the environment takes up the demonstrations' statistics, of
        rewards too, and keeps them, so that the reference goes on seeing what it was cloned on.
    :param update_backend: ``"auto"``, ``"eager"`` or ``"compiled"``.
    :param matmul_precision: ``"fp32"`` or ``"bf16"``.
    :param kwargs: Arguments of SB3's PPO.
    :raises sb3_ext.datasets.DatasetError: demonstrations are missing, broken or of another environment.
    :raises ValueError: an argument is out of its range, or demonstrations or a reference are not used.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
        "TruncatedNormalMlpPolicy": TruncatedNormalMlpPolicy,
    }
    dataset_buffer: DatasetBuffer | None = None
    reference: BasePolicy | None = None
    # Saved with the model
    dataset_metadata: dict[str, Any] | None = None
    _reference_structure: BasePolicy | None = None
    _bc_pretrain_steps_done = 0
    _n_value_warmup = 0
    _kl_factor = 1.0
    _has_statistics = False
    # Parameters that learn while the value function warms up
    _warming: list[nn.Parameter] | None = None
    _iteration_to_dump: int | None = None

    def __init__(
        self,
        policy: str | type[BasePolicy],
        env: GymEnv | str,
        learning_rate: float | str | Schedule = 3e-4,
        *,
        demos: DatasetLike | None = None,
        bc_pretrain_steps: int = 0,
        bc_batch_size: int = 256,
        bc_learning_rate: float | str | Schedule = 1e-3,
        bc_coef: float | str | Schedule = 0.0,
        kl_coef: float | str | Schedule | None = None,
        kl_estimator: str = "auto",
        target_reverse_kl: float | None = None,
        reference: BaseAlgorithm | BasePolicy | None = None,
        value_warmup_steps: int = 0,
        accumulate_epoch: bool = False,
        standardize_observations: bool = False,
        freeze_normalization: bool = False,
        update_backend: str = "auto",
        matmul_precision: str = "fp32",
        clip_range: float | str | Schedule = 0.2,
        clip_range_vf: float | str | Schedule | None = None,
        _init_setup_model: bool = True,
        **kwargs: Any,
    ):
        super().__init__(
            policy,  # type: ignore[arg-type]
            env,
            learning_rate,  # type: ignore[arg-type]
            clip_range=clip_range,  # type: ignore[arg-type]
            clip_range_vf=clip_range_vf,  # type: ignore[arg-type]
            _init_setup_model=False,
            **kwargs,
        )
        self.demos = demos
        self.bc_pretrain_steps = bc_pretrain_steps
        self.bc_batch_size = bc_batch_size
        self.bc_learning_rate = bc_learning_rate
        self.bc_coef = bc_coef
        self.kl_coef = kl_coef
        self.kl_estimator = kl_estimator
        self.target_reverse_kl = target_reverse_kl
        self.value_warmup_steps = value_warmup_steps
        self.accumulate_epoch = accumulate_epoch
        self.standardize_observations = standardize_observations
        self.freeze_normalization = freeze_normalization
        self.update_backend = update_backend
        self.matmul_precision = matmul_precision
        if _init_setup_model:
            self._check_arguments()
            self._check_demos()
            self._check_anchor(reference)
            if reference is not None:
                references.check_reference(reference, self)
            self._setup_model()
            if demos is not None:
                self._load_demos()
            if reference is not None:
                self._set_reference(reference)

    def _check_arguments(self) -> None:
        for name, least in (("bc_pretrain_steps", 0), ("bc_batch_size", 1), ("value_warmup_steps", 0)):
            value = getattr(self, name)
            if not is_whole(value) or value < least:
                raise ValueError(f"{name}={value!r} must be an integer of at least {least}.")
        if self.kl_estimator not in ("auto", *KL_ESTIMATORS):
            raise ValueError(f"kl_estimator={self.kl_estimator!r} must be one of 'auto', 'importance', 'k3'.")
        if self.target_reverse_kl is not None and not self.target_reverse_kl > 0:
            raise ValueError(f"target_reverse_kl={self.target_reverse_kl} must be positive, or None.")
        check_arguments(self.update_backend, self.matmul_precision)
        if self.update_backend == "cudagraph":  # PPO decides between minibatches whether to go on
            raise ValueError("update_backend='cudagraph' is not for PPO: use 'auto', which compiles on a GPU too.")
        for name in ("bc_learning_rate", "bc_coef", *(() if self.kl_coef is None else ("kl_coef",))):
            as_schedule(getattr(self, name), name)
        if self.freeze_normalization and self.get_vec_normalize_env() is None:
            raise ValueError("freeze_normalization=True freezes a VecNormalize around the environment; there is none.")

    def _check_demos(self) -> None:
        uses = {name: getattr(self, name) for name in ("bc_pretrain_steps", "standardize_observations")}
        uses |= {"bc_coef": self._is_used(self.bc_coef), "freeze_normalization": self.freeze_normalization}
        used = [name for name, value in uses.items() if value]
        if self.demos is None and used:
            raise ValueError(f"There are no demonstrations for {', '.join(used)}: pass demos=..., or leave that out.")
        if self.demos is not None and not used:
            raise ValueError(f"demos are given, but nothing uses them: set one of {', '.join(uses)}.")

    def _check_anchor(self, reference: BaseAlgorithm | BasePolicy | None) -> None:
        wants_anchor = self.target_reverse_kl is not None or self._is_used(self.kl_coef or 0.0)
        if wants_anchor and reference is None and self._bc_steps_left() == 0:
            raise ValueError(
                "kl_coef and target_reverse_kl need a policy to stay near to: set bc_pretrain_steps, for the clone, "
                "or pass reference=... (load takes it too), or leave them out."
            )
        if not self._is_used(self._kl_coef_or_default()):
            given = None if reference is self.reference else reference  # a reference that was used before may rest
            for name, value in (("reference", given), ("target_reverse_kl", self.target_reverse_kl)):
                if value is not None:
                    raise ValueError(f"kl_coef=0 leaves {name} unused: leave it out, or make kl_coef positive.")

    @staticmethod
    def _is_used(coef: float | str | Schedule) -> bool:
        if callable(coef):
            return True  # it may start at 0
        return as_schedule(coef, "coefficient")(1.0) > 0

    def _bc_steps_left(self) -> int:
        """Of cloning."""
        return max(int(self.bc_pretrain_steps) - self._bc_pretrain_steps_done, 0)

    def _kl_coef_or_default(self) -> float | str | Schedule:
        return DEFAULT_KL_COEF if self.kl_coef is None else self.kl_coef

    def _setup_model(self) -> None:
        if self.standardize_observations:
            self.policy_kwargs = with_standardizing_extractor(self.policy_kwargs, self.observation_space)
        for name in ("learning_rate", "clip_range", "clip_range_vf"):  # here, since `load` may bring strings too
            if getattr(self, name) is not None:
                setattr(self, name, as_schedule(getattr(self, name), name))
        super()._setup_model()
        self._engine: UpdateEngine | None = None
        if self._reference_structure is not None:
            self.reference = references.of_structure(self._reference_structure, self.device)

    def _load_demos(self) -> None:
        assert self.demos is not None
        dataset = pretraining.demonstrations_of(self, self.demos)
        self.dataset_buffer = DatasetBuffer(dataset, self.observation_space, self.action_space, device=self.device)
        self.dataset_metadata = dataset.metadata.to_dict()
        if self.standardize_observations and not self._has_statistics:
            assert isinstance(dataset.observations, np.ndarray)
            set_statistics(self.policy, dataset.observations)
            self._has_statistics = True

    def _set_reference(self, reference: BaseAlgorithm | BasePolicy) -> None:
        policy = reference.policy if isinstance(reference, BaseAlgorithm) else reference
        self.reference = references.freeze(policy).to(self.device)
        self._reference_structure = references.structure_of(self.reference)

    @property
    def engine(self) -> UpdateEngine:
        """What runs the updates of this model; a new one where the policy is another object."""
        optimizers = [self.policy.optimizer]
        if self._engine is None or not self._engine.runs(self.policy, optimizers):
            self._engine = UpdateEngine(
                self.policy,
                optimizers,
                self._update_constants,
                self.update_backend,
                self.matmul_precision,
                self.verbose,
                as_sb3=True,
                has_loops=False,
            )
        return self._engine

    def _update_constants(self) -> tuple[Any, ...]:
        """Numbers in the updates that a user may change on the model."""
        return self.ent_coef, self.vf_coef, self.max_grad_norm, self.kl_estimator, id(self.reference)

    # --- Before the first rollout ------------------------------------------------------------------------------------

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "BCPPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> "BCPPO":
        """As in SB3."""
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        self._check_arguments()  # they may have changed since, for instance by `load`
        self._check_anchor(self.reference)
        left = self._bc_steps_left()
        if self.dataset_buffer is None and (left > 0 or self._is_used(self.bc_coef) or self._needs_statistics()):
            self._reload_demos()
        self._initialise_normalization()  # before SB3 resets the environment and normalises what it sees
        self.engine.requested, self.engine.precision = self.update_backend, self.matmul_precision
        rollout = self.n_steps * self.n_envs
        n_updates = self.n_epochs * math.ceil(rollout / self.batch_size) * math.ceil(total_timesteps / rollout)
        self.engine.plan(n_updates, self.batch_size)
        setup = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        if left > 0:
            self._pretrain(left)
            if self.reference is None and self._is_used(self._kl_coef_or_default()):
                self._set_reference(self.policy)
        self._tell(total_timesteps)
        return setup

    def _tell(self, total_timesteps: int) -> None:
        """What would surprise somebody who looks at the log."""
        normalize = self.get_vec_normalize_env()
        if self.reference is not None and normalize is not None and normalize.norm_obs and normalize.training:
            warnings.warn(
                "VecNormalize goes on changing what the frozen reference sees, and with it how the reference acts: set "
                "freeze_normalization=True, or training=False of the VecNormalize.",
                stacklevel=6,
            )
        warmup = self.value_warmup_steps - self._n_value_warmup
        if warmup > 0 and self.verbose > 0:
            print(f"The value function learns alone for {warmup} steps")
        if 0 < total_timesteps <= warmup:
            warnings.warn(
                f"value_warmup_steps={self.value_warmup_steps} leave no step of these {total_timesteps} to the policy: "
                "it will not change. Lower them, or learn for longer.",
                stacklevel=6,
            )

    def _reload_demos(self) -> None:
        """Demonstrations of a loaded model: from their saved name, or as given to ``load``."""
        if self.demos is None:
            raise DatasetError(
                "This model was trained with demonstrations that were in memory, and they are gone. Pass them again, "
                "BCPPO.load(path, env=env, demos=...), or train on without: BCPPO.load(path, env=env, bc_coef=0), with "
                "VecNormalize.load(...) around the environment if there was one."
            )
        self._load_demos()

    def _needs_statistics(self) -> bool:
        """Whether there is a ``VecNormalize`` that is to keep statistics, and has none."""
        normalize = self.get_vec_normalize_env()
        return self.freeze_normalization and normalize is not None and normalize.training

    def _initialise_normalization(self) -> None:
        normalize = self.get_vec_normalize_env()
        if normalize is None:
            return
        if self.dataset_buffer is not None:
            self.dataset_buffer.init_statistics(normalize)
        if self.freeze_normalization:
            normalize.training = False

    def _pretrain(self, n_steps: int) -> None:
        if self.verbose > 0:
            print(f"Cloning the demonstrations: {n_steps} steps")
        assert self.dataset_buffer is not None
        losses = pretraining.clone(
            self,
            pretraining.cloning_loss(self.policy),
            self.dataset_buffer,
            n_steps,
            int(self.bc_batch_size),
            as_schedule(self.bc_learning_rate, "bc_learning_rate"),
        )
        self._bc_pretrain_steps_done += n_steps
        self.logger.record("train/bc_loss", float(losses[-LOGGED_LOSSES:].mean()))
        self.logger.dump(step=self.num_timesteps)

    # --- Rollouts and updates ----------------------------------------------------------------------------------------

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """
        As in SB3; but where nothing has to be SB3's to the last bit, values and log-probabilities are computed for many
        states at once when the rollout is complete: acting does not need them.

        :raises ValueError: the policy's outputs are no longer finite.
        """
        with unvalidated_distributions():
            if self.reference is None and self.dataset_buffer is None and self.engine.backend == "eager":
                goes_on = super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
            else:
                with self._acting_alone():
                    goes_on = super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
                if goes_on:
                    self._evaluate_rollout(rollout_buffer)
        # Looked at once a rollout, in place of PyTorch's check of each distribution
        if goes_on and not (np.isfinite(rollout_buffer.values).all() and np.isfinite(rollout_buffer.log_probs).all()):
            raise ValueError(
                f"The policy's outputs are no longer finite after {self.num_timesteps} timesteps. Observations that "
                "are NaN or infinite do that (stable_baselines3.common.vec_env.VecCheckNan finds them), and so does a "
                "learning_rate that is too high."
            )
        return goes_on

    @contextmanager
    def _acting_alone(self) -> Iterator[None]:
        """Calls of the policy give actions, and zeros for values and log-probabilities."""
        policy = self.policy

        def act(obs: PyTorchObs, deterministic: bool = False) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
            actions = policy.get_distribution(obs).get_actions(deterministic=deterministic)
            zeros = actions.new_zeros(len(actions), dtype=th.float32)
            return actions.reshape(-1, *self.action_space.shape), zeros[:, None], zeros  # type: ignore[misc]

        policy.forward = act  # type: ignore[method-assign]
        try:
            yield
        finally:
            del policy.forward

    @th.no_grad()
    def _evaluate_rollout(self, buffer: RolloutBuffer) -> None:
        """Values, log-probabilities and what follows from them."""
        n = self.n_steps * self.n_envs
        obs = map_observations(lambda column: column.reshape(n, *column.shape[2:]), buffer.observations)
        actions = buffer.actions.reshape(n, -1)
        values, log_probs = [], []
        for start in range(0, n, self.batch_size):
            rows = slice(start, start + self.batch_size)
            batch = obs_as_tensor(map_observations(lambda column, rows=rows: column[rows], obs), self.device)
            own = self._own_actions(th.as_tensor(actions[rows], device=self.device))
            value, log_prob, _ = self.policy.evaluate_actions(batch, own)
            values.append(value.flatten())
            log_probs.append(log_prob)
        shape = self.n_steps, self.n_envs
        buffer.values, buffer.log_probs = (th.cat(x).cpu().numpy().reshape(shape) for x in (values, log_probs))
        last_values = self.policy.predict_values(obs_as_tensor(self._last_obs, self.device))  # type: ignore[arg-type]
        buffer.compute_returns_and_advantage(last_values=last_values, dones=self._last_episode_starts)  # type: ignore[arg-type]

    def dump_logs(self, iteration: int = 0) -> None:
        """SB3 asks for this before the update; :meth:`train` writes, with the metrics of the rollout's own update."""
        self._iteration_to_dump = iteration

    def train(self) -> None:
        """Update the policy, or while it warms up the value function alone, on the rollout."""
        if not hasattr(self, "_logger"):  # `train` without `learn`
            self.set_logger(configure(None, []))
        self._update_learning_rate(self.policy.optimizer)
        with self.engine.session(), unvalidated_distributions():
            if self._n_value_warmup < self.value_warmup_steps:
                self._n_value_warmup += self.n_steps * self.n_envs
                self._train_value()
            else:
                self._train_policy()
        explained = explained_variance(self.rollout_buffer.values.flatten(), self.rollout_buffer.returns.flatten())
        self.logger.record("train/explained_variance", explained)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        if self._iteration_to_dump is not None:
            super().dump_logs(self._iteration_to_dump)
            self._iteration_to_dump = None

    def _train_value(self) -> None:
        metrics = Metrics()
        scalars = self._scalars()
        self._warming = None
        for _ in range(self.n_epochs):
            for batch in self.rollout_buffer.get(self.batch_size):
                if self._warming is None:
                    self._warming = self._value_parameters(batch)
                metrics.add(self.engine.run(self._update_value, batch, scalars))
            self._n_updates += 1
        self._log_means(metrics.seal().means())

    def _value_parameters(self, batch: RolloutBufferSamples) -> list[nn.Parameter]:
        """Those that the values depend on, and actions do not."""
        parameters = [parameter for parameter in self.policy.parameters() if parameter.requires_grad]
        values, log_prob, _ = self.policy.evaluate_actions(batch.observations, self._own_actions(batch.actions))
        of_values, of_actions = (
            th.autograd.grad(output.sum(), parameters, allow_unused=True, retain_graph=True)
            for output in (values, log_prob)
        )
        triples = zip(parameters, of_values, of_actions, strict=True)
        return [parameter for parameter, value, action in triples if value is not None and action is None]

    def _train_policy(self) -> None:
        scalars = self._scalars()
        epoch = self._accumulated_epoch if self.accumulate_epoch else self._epoch
        all_metrics = Metrics()
        for _ in range(self.n_epochs):
            metrics = Metrics()
            goes_on = epoch(metrics, scalars)
            all_metrics.extend(metrics.seal())
            self._n_updates += 1
            if not goes_on:
                break
        last = metrics.means()
        means = {**all_metrics.seal().means(), **{name: last[name] for name in LAST_EPOCH if name in last}}
        if not math.isfinite(means.get("loss", 0.0)):  # none where the very first minibatch was too far
            raise ValueError(
                f"The loss is no longer finite after {self.num_timesteps} timesteps: lower learning_rate or "
                "max_grad_norm, or set target_kl, and look at train/std and train/clip_fraction up to there."
            )
        self._log_means(means)
        for name in ("kl_coef", "bc_coef", "clip_range", "clip_range_vf"):
            if name in scalars:
                self.logger.record(f"train/{name}", scalars[name].item())
        if self.target_reverse_kl is not None and "reverse_kl" in means:
            self._adapt_kl_coef(means["reverse_kl"])

    def _scalars(self) -> Scalars:
        """What changes with the progress of ``learn``, as tensors: numbers are constants of compiled updates."""
        progress = self._current_progress_remaining
        clip_range = self.clip_range(progress)  # type: ignore[operator]
        scalars = {"clip_range": clip_range, "clip_low": 1 - clip_range, "clip_high": 1 + clip_range}
        if self.clip_range_vf is not None:
            scalars["clip_range_vf"] = self.clip_range_vf(progress)  # type: ignore[operator]
        if self.reference is not None:
            kl_coef = as_schedule(self._kl_coef_or_default(), "kl_coef")(progress)
            scalars["kl_coef"] = kl_coef * self._kl_factor
        if self._is_used(self.bc_coef):
            scalars["bc_coef"] = as_schedule(self.bc_coef, "bc_coef")(progress)
        return {name: th.tensor(value, dtype=th.float32, device=self.device) for name, value in scalars.items()}

    def _adapt_kl_coef(self, reverse_kl: float) -> None:
        assert self.target_reverse_kl is not None
        if reverse_kl > KL_TOLERANCE * self.target_reverse_kl:
            self._kl_factor *= KL_TOLERANCE
        elif reverse_kl < self.target_reverse_kl / KL_TOLERANCE:
            self._kl_factor /= KL_TOLERANCE
        self._kl_factor = min(max(self._kl_factor, KL_FACTORS[0]), KL_FACTORS[1])

    def _log_means(self, means: dict[str, float]) -> None:
        for name, value in means.items():
            self.logger.record(f"train/{name}", value)

    def _epoch(self, metrics: Metrics, scalars: Scalars) -> bool:
        """An optimizer step for each minibatch; False if the policy went too far."""
        for batch in self.rollout_buffer.get(self.batch_size):
            advantages = batch.advantages
            if self.normalize_advantage and len(advantages) > 1:
                advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
            batch = batch._replace(advantages=advantages)
            demos = self._draw_demos()
            if self.target_kl is None:
                metrics.add(self.engine.run(self._update, batch, demos, scalars))
                continue
            grads, found = self.engine.run(self._gradients, batch, demos, scalars)
            if self._is_too_far(found["approx_kl"]):
                metrics.add({"approx_kl": found["approx_kl"]})
                return False
            self.engine.run(self._step, grads)
            metrics.add(found)
        return True

    def _accumulated_epoch(self, metrics: Metrics, scalars: Scalars) -> bool:
        """One optimizer step on the mean gradient of all slices; False if the policy went too far."""
        n_rows = self.n_steps * self.n_envs
        advantages = th.as_tensor(self.rollout_buffer.advantages, device=self.device)
        mean, std = advantages.mean(), advantages.std()
        total: tuple[th.Tensor | None, ...] | None = None
        means: Scalars = {}
        for batch in self.rollout_buffer.get(self.batch_size):
            share = len(batch.advantages) / n_rows
            if self.normalize_advantage:
                batch = batch._replace(advantages=(batch.advantages - mean) / (std + 1e-8))
            grads, found = self.engine.run(self._gradients, batch, self._draw_demos(), scalars)
            grads = tuple(None if grad is None else share * grad for grad in grads)
            total = grads if total is None else tuple(_added(a, b) for a, b in zip(total, grads, strict=True))
            means = {name: means.get(name, 0.0) + share * value for name, value in found.items()}
        metrics.add(means)
        if self.target_kl is not None and self._is_too_far(means["approx_kl"]):
            return False
        self.engine.run(self._step, total)
        return True

    def _is_too_far(self, approx_kl: th.Tensor) -> bool:
        assert self.target_kl is not None
        return approx_kl.item() > 1.5 * self.target_kl  # SB3's factor

    def _draw_demos(self) -> tuple[Any, th.Tensor] | None:
        if not self._is_used(self.bc_coef):
            return None
        assert self.dataset_buffer is not None
        samples = self.dataset_buffer.sample(int(self.bc_batch_size), env=self.get_vec_normalize_env())
        return samples.observations, samples.actions

    # --- What the engine runs ----------------------------------------------------------------------------------------

    def _update(self, batch: RolloutBufferSamples, demos: Any, scalars: Scalars) -> Scalars:
        loss, metrics = self._loss(batch, demos, scalars)
        self.engine.minimize(loss, self.policy.optimizer, self.max_grad_norm)
        return metrics

    def _gradients(
        self, batch: RolloutBufferSamples, demos: Any, scalars: Scalars
    ) -> tuple[tuple[th.Tensor | None, ...], Scalars]:
        loss, metrics = self._loss(batch, demos, scalars)
        return tuple(self.engine.gradients(loss, self.policy.optimizer)), metrics

    def _step(self, grads: tuple[th.Tensor | None, ...]) -> None:
        self.engine.step(self.policy.optimizer, grads, self.max_grad_norm)

    def _update_value(self, batch: RolloutBufferSamples, scalars: Scalars) -> Scalars:
        loss = self._value_loss(self.policy.predict_values(batch.observations).flatten(), batch, scalars)
        grads = self.engine.gradients(self.vf_coef * loss, self.policy.optimizer, only=self._warming)
        self.engine.step(self.policy.optimizer, grads, self.max_grad_norm)
        return {"value_loss": loss.detach()}

    def _loss(self, batch: RolloutBufferSamples, demos: Any, scalars: Scalars) -> tuple[th.Tensor, Scalars]:
        """In SB3's order, so that sums are rounded alike."""
        actions = self._own_actions(batch.actions)
        values, log_prob, entropy = self.policy.evaluate_actions(batch.observations, actions)
        log_ratio = log_prob - batch.old_log_prob
        ratio = log_ratio.exp()
        policy_loss = clipped_surrogate_loss(ratio, batch.advantages, scalars["clip_low"], scalars["clip_high"])
        value_loss = self._value_loss(values.flatten(), batch, scalars)
        entropy_loss = log_prob.mean() if entropy is None else -entropy.mean()
        loss = policy_loss + self.ent_coef * entropy_loss + self.vf_coef * value_loss
        metrics = {
            "policy_gradient_loss": policy_loss.detach(),
            "value_loss": value_loss.detach(),
            "entropy_loss": entropy_loss.detach(),
            "approx_kl": _approx_kl(log_ratio.detach()),
            "clip_fraction": ((ratio.detach() - 1).abs() > scalars["clip_range"]).float().mean(),
            **_std(self.policy),
        }
        if "kl_coef" in scalars:
            reverse_kl = self._reverse_kl(batch, log_prob, log_ratio)
            loss = loss + scalars["kl_coef"] * reverse_kl
            metrics["reverse_kl"] = reverse_kl.detach()
        if demos is not None:
            bc_loss = behaviour_cloning_loss(action_log_prob(self.policy, *demos))
            loss = loss + scalars["bc_coef"] * bc_loss
            metrics["bc_loss"] = bc_loss.detach()
        return loss, {**metrics, "loss": loss.detach()}

    def _value_loss(self, values: th.Tensor, batch: RolloutBufferSamples, scalars: Scalars) -> th.Tensor:
        """
        :param values: ``(batch,)``
        """
        if "clip_range_vf" in scalars:
            clip = scalars["clip_range_vf"]
            values = batch.old_values + th.clamp(values - batch.old_values, -clip, clip)
        return nn.functional.mse_loss(batch.returns, values)

    def _reverse_kl(self, batch: RolloutBufferSamples, log_prob: th.Tensor, log_ratio: th.Tensor) -> th.Tensor:
        """
        :param log_prob: of the rollout's actions, ``(batch,)``; the policy's distribution is that of the batch
        :param log_ratio: to the policy that drew them
        """
        assert self.reference is not None
        if self.kl_estimator == "auto" and references.has_analytic_kl(self.policy, self.reference):
            distribution: Distribution = self.policy.action_dist
            with th.no_grad():
                reference = self.reference.get_distribution(batch.observations)  # type: ignore[operator]
            return references.analytic_reverse_kl(distribution, reference).mean()
        with th.no_grad():
            ref_log_prob = action_log_prob(self.reference, batch.observations, to_buffer(self.policy, batch.actions))
        estimate = KL_ESTIMATORS["k3" if self.kl_estimator == "auto" else self.kl_estimator]
        return estimate(log_prob + log_volume(self.policy) - ref_log_prob, log_ratio)

    def _own_actions(self, actions: th.Tensor) -> th.Tensor:
        """Of a rollout, as SB3's policies evaluate them."""
        return actions.long().flatten() if isinstance(self.action_space, spaces.Discrete) else actions

    # --- Saving ------------------------------------------------------------------------------------------------------

    @classmethod
    def load(  # type: ignore[override]
        cls, *args: Any, reference: BaseAlgorithm | BasePolicy | None = None, **kwargs: Any
    ) -> "BCPPO":
        """
        Load a model from a zip file.

        :param args: As SB3's ``load`` has them: path, environment, device...
        :param reference: Takes the place of the saved reference.
        :param kwargs: Likewise, and attributes to change.
        """
        model = super().load(*args, **kwargs)
        if reference is not None:
            references.check_reference(reference, model)
            model._set_reference(reference)
        return model

    def _excluded_save_params(self) -> list[str]:
        excluded = [*super()._excluded_save_params(), "_engine", "dataset_buffer", "reference", "_warming"]
        # A name finds its data again; arrays would end up in the zip
        return excluded if isinstance(self.demos, (str, os.PathLike)) else [*excluded, "demos"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        modules, tensors = super()._get_torch_save_params()
        return [*modules, *(["reference"] if self.reference is not None else [])], tensors


# For `help`, completion and RL Zoo
BCPPO.__signature__ = joint_signature(BCPPO)  # type: ignore[attr-defined]


def _approx_kl(log_ratio: th.Tensor) -> th.Tensor:
    """Of the policy from the one that drew the actions (http://joschu.net/blog/kl-approx.html)."""
    return ((log_ratio.exp() - 1) - log_ratio).mean()


def _std(policy: BasePolicy) -> Scalars:
    """Mean standard deviation of actions, where the policy has one."""
    distribution = getattr(policy, "action_dist", None)
    if isinstance(distribution, TruncatedNormalDistribution):
        return {"std": distribution.distribution.log_scale.detach().exp().mean()}
    log_std = getattr(policy, "log_std", None)
    return {"std": log_std.detach().exp().mean()} if isinstance(log_std, th.Tensor) else {}


def _added(a: th.Tensor | None, b: th.Tensor | None) -> th.Tensor | None:
    return None if a is None or b is None else a + b


@contextmanager
def unvalidated_distributions() -> Iterator[None]:
    """PyTorch checks arguments of each distribution, which costs as much as the network and cannot be recorded."""
    before = th.distributions.Distribution._validate_args
    th.distributions.Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        th.distributions.Distribution.set_default_validate_args(before)
