"""Where to go, and how: a policy whose actions are subgoals above a clone that gets there."""

import inspect
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor, get_actor_critic_arch
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from sb3_ext.common.actors import GaussianActor
from sb3_ext.common.episode_memory import EpisodeMemory, within_limits
from sb3_ext.common.offline_policies import CloningPolicy, ValuePolicy, WeightedCloningPolicy
from sb3_ext.common.policies import EnsemblePolicy
from sb3_ext.common.standardize import StandardizingExtractor
from sb3_ext.common.symmetry import N_POSITION, BodyFrame, RotationalSymmetry, as_symmetry

# Share of the data's subgoals, entry by entry, that lie within the limits of the high level's actions
WITHIN_LIMITS = 0.999
HIGH_LEVEL_ARGUMENTS = inspect.signature(EnsemblePolicy).parameters.keys()
OWN_ARGUMENTS = {"subgoal_entries", "low_level_net_arch", "subgoal_quantile", "memory_radius", "symmetry"}


class HierarchicalPolicy(BasePolicy):
    r"""
    Two policies, as in HIQL (Park et al. 2023, https://arxiv.org/abs/2307.11949). The first entries of the observation,
    x and y of a walker, say, are where one can be. The high level is the policy that an algorithm has otherwise; it
    sees those entries alone, and its actions are subgoals: by how much they are to differ n steps later, n being the
    algorithm's ``n_steps``. Learning from it is the algorithm's, whatever it is, on transitions of n steps:

    .. math::
        (x_t,\ \Delta_t / c,\ r_t + \dots + \gamma^{n - 1} r_{t + n - 1},\ x_{t + n}),
            \quad \Delta_t = x_{t + n} - x_t

    with c, entry by entry, such that subgoals lie in [-1, 1]. Where an episode ends after k < n steps,
    :math:`\Delta_t` is multiplied by n / k. The low level clones the data's actions, all of them, wherever they led:

    .. math::
        L = -\mathrm{mean} \log\pi(a_t | s_t, \Delta_t / c)

    or regresses to them where the algorithm's actor is deterministic.

    Where the data disagree about the way, the subgoal that an algorithm learns is an average: its direction means
    something, but averaging shortens it. With ``subgoal_quantile`` subgoals are played with one length, which the data
    have.

    A clone may stand still where the data do not, and a goal that no observation tells has to be searched. With
    ``memory_radius``, for data whose episodes end at a goal, the state that ``predict`` returns, and takes again,
    remembers the episode: see :class:`~sb3_ext.common.episode_memory.EpisodeMemory`. SB3's ``evaluate_policy`` and RL
    Zoo's ``enjoy`` pass it on; without it every step is the first of an episode, as it is where an algorithm collects.

    A robot whose legs are alike need not turn around to go back: another leg goes first. With ``symmetry`` the low
    level sees it from the leg that is ahead, without x and y, and learns all directions from any: see
    :class:`~sb3_ext.common.symmetry.BodyFrame`.

    One that derives from it has ``high_level_class``.

    :param observation_space: Observation space, a Box of vectors.
    :param action_space: Action space, a Box.
    :param lr_schedule: Learning rate schedule.
    :param net_arch: Sizes of the hidden layers; see ``high_level_class``.
    :param activation_fn: Activation function.
    :param features_extractor_class: None but what flattens and standardises.
    :param features_extractor_kwargs: Its keyword arguments.
    :param optimizer_class: ``th.optim.Adam`` by default, which then runs its fused kernel.
    :param optimizer_kwargs: Its keyword arguments, without the learning rate.
    :param subgoal_entries: Number of entries at the start of the observation that are a subgoal, such as 2 for x and y.
    :param low_level_net_arch: Sizes of the hidden layers of the low level; those of the high level's actor if None.
    :param subgoal_quantile: In (0, 1]: subgoals are played as long as this quantile of the data's, lengths being those
        after dividing by c; shorter where an entry would leave [-1, 1]. None plays them as they were learnt.
    :param memory_radius: In (0, 1), relative to c: one that has moved less in n steps stands, and one that came nearer
        than this to a goal of the data has been there. It can be changed on ``memory.radius``. None has no memory.
    :param symmetry: ``"ant"``, for Gymnasium's Ant and AntMaze with 29 entries, or a
        :class:`~sb3_ext.common.symmetry.RotationalSymmetry` or a dict of its arguments for another robot, whose x and
        y are subgoals. Observations are as the environment has them, or standardised by ``standardize_observations``.
        None takes robots as they are observed.
    :param kwargs: Further arguments of ``high_level_class``, such as ``n_critics``.
    :raises ValueError: observations are no vectors, have fewer entries or go through another network first, actions are
        discrete, an argument is unknown, or the symmetry is none of these spaces'.
    """

    high_level_class: ClassVar[Any]
    high_level: Any
    low_level: GaussianActor
    features_extractor: FlattenExtractor
    # How far a subgoal of 1 is, (subgoal_entries,)
    subgoal_scale: th.Tensor
    # Of all that are played with a `subgoal_quantile`, relative to the scale, a scalar
    subgoal_length: th.Tensor

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] = nn.ReLU,
        features_extractor_class: type[BaseFeaturesExtractor] = FlattenExtractor,
        features_extractor_kwargs: dict[str, Any] | None = None,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        subgoal_entries: int = 2,
        low_level_net_arch: list[int] | None = None,
        subgoal_quantile: float | None = None,
        memory_radius: float | None = None,
        symmetry: str | Mapping[str, Any] | RotationalSymmetry | None = None,
        **kwargs: Any,
    ):
        self._check_spaces(observation_space, action_space, features_extractor_class)
        n_entries = spaces.flatdim(observation_space)
        self._check_arguments(n_entries, subgoal_entries, low_level_net_arch, subgoal_quantile, memory_radius, kwargs)
        super().__init__(
            observation_space,
            action_space,
            features_extractor_class,
            features_extractor_kwargs,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
            squash_output=True,
        )
        self.features_extractor = self.make_features_extractor()  # type: ignore[assignment]
        self.net_arch, self.activation_fn = net_arch, activation_fn
        self.subgoal_entries, self.low_level_net_arch = subgoal_entries, low_level_net_arch
        self.subgoal_quantile = subgoal_quantile
        self._high_level_kwargs = kwargs
        shared: dict[str, Any] = {
            "activation_fn": activation_fn,
            "optimizer_class": optimizer_class,
            "optimizer_kwargs": optimizer_kwargs,
        }
        where, subgoal = _box(np.inf, subgoal_entries), _box(1, subgoal_entries)
        self.high_level = self.high_level_class(where, subgoal, lr_schedule, net_arch=net_arch, **shared, **kwargs)
        if low_level_net_arch is None:
            low_level_net_arch, _ = get_actor_critic_arch(self.high_level.net_arch)
        self.symmetry = symmetry
        self.body = None if symmetry is None else self._make_body(symmetry)
        n_inputs = n_entries + subgoal_entries if self.body is None else self.body.n_inputs
        inputs = _box(np.inf, n_inputs)
        self.low_level = CloningPolicy(inputs, action_space, lr_schedule, low_level_net_arch, **shared).actor  # type: ignore[assignment]
        self.register_buffer("subgoal_scale", th.ones(subgoal_entries))
        self.register_buffer("subgoal_length", th.ones(()))
        self.memory = None if memory_radius is None else EpisodeMemory(subgoal_entries, float(memory_radius))

    @property
    def memory_radius(self) -> float | None:
        """Of the memory, if there is one."""
        return None if self.memory is None else self.memory.radius

    @staticmethod
    def _check_spaces(
        observation_space: spaces.Space,
        action_space: spaces.Space,
        features_extractor_class: type[BaseFeaturesExtractor],
    ) -> None:
        if not isinstance(observation_space, spaces.Box) or len(observation_space.shape) != 1:
            raise ValueError(
                f"Subgoals are entries of vector observations, not of {observation_space}: take CnnPolicy for images, "
                "MultiInputPolicy for Dicts."
            )
        if not isinstance(action_space, spaces.Box):
            raise ValueError(f"HierarchicalPolicy has continuous actions alone, not {action_space}. Take MlpPolicy.")
        if features_extractor_class not in (FlattenExtractor, StandardizingExtractor):
            raise ValueError(
                "Subgoals are entries of the observation: HierarchicalPolicy takes no features extractor. Scale "
                "observations by standardize_observations=True or VecNormalize."
            )

    @staticmethod
    def _check_arguments(
        n_entries: int,
        subgoal_entries: Any,
        low_level_net_arch: Any,
        subgoal_quantile: Any,
        memory_radius: Any,
        of_high_level: dict[str, Any],
    ) -> None:
        is_int = isinstance(subgoal_entries, Integral) and not isinstance(subgoal_entries, bool)
        if not is_int or not 1 <= subgoal_entries <= n_entries:
            raise ValueError(f"subgoal_entries={subgoal_entries!r} must be a whole number in [1, {n_entries}].")
        if low_level_net_arch is not None and not isinstance(low_level_net_arch, list):
            raise ValueError(f"low_level_net_arch={low_level_net_arch!r} must be a list of sizes, such as [256, 256].")
        if subgoal_quantile is not None and not (_is_real(subgoal_quantile) and 0 < subgoal_quantile <= 1):
            raise ValueError(f"subgoal_quantile={subgoal_quantile!r} must be in (0, 1], or None.")
        if memory_radius is not None and not (_is_real(memory_radius) and 0 < memory_radius < 1):
            raise ValueError(
                f"memory_radius={memory_radius!r} must be a number in (0, 1), or None: a share of the longest subgoals."
            )
        unknown = sorted(of_high_level.keys() - HIGH_LEVEL_ARGUMENTS)
        if unknown:
            names = sorted(HIGH_LEVEL_ARGUMENTS | OWN_ARGUMENTS)
            raise ValueError(f"HierarchicalPolicy has no arguments {unknown}, but {names}.")

    def _make_body(self, symmetry: Any) -> BodyFrame:
        checked = as_symmetry(symmetry)
        if self.subgoal_entries != N_POSITION:
            raise ValueError(
                f"symmetry turns x and y, subgoals have {self.subgoal_entries} entries: subgoal_entries={N_POSITION}."
            )
        checked.check(self.observation_space, self.action_space)
        return BodyFrame(checked, spaces.flatdim(self.observation_space))

    def features(self, obs: PyTorchObs) -> th.Tensor:
        """Flat, standardised if they are to be, ``(..., obs_dim) -> (..., obs_dim)``."""
        assert isinstance(obs, th.Tensor)
        rows = self.extract_features(obs.reshape(-1, obs.shape[-1]), self.features_extractor)
        return rows.reshape(obs.shape)

    def where(self, features: th.Tensor) -> th.Tensor:
        """What the high level sees, ``(..., obs_dim) -> (..., subgoal_entries)``."""
        return features[..., : self.subgoal_entries]

    def take_sizes(self, obs: th.Tensor, ways: th.Tensor, n_steps: int) -> None:
        """
        :param obs: observations of the data, ``(n, obs_dim)``
        :param ways: differences of the first entries that follow, ``(n, subgoal_entries)``
        :param n_steps: that ways take
        :raises ValueError: all of them are always the same
        """
        scale = ways.abs().quantile(WITHIN_LIMITS, dim=0)
        if not (scale > 0).any():
            raise ValueError(
                f"Subgoals are where the data go in the first subgoal_entries={self.subgoal_entries} entries of the "
                "observation, and those hardly ever change: policy_kwargs=dict(subgoal_entries=...)."
            )
        self.subgoal_scale.copy_(scale.where(scale > 0, 1))
        lengths = self.subgoals(ways).norm(dim=-1)
        if self.subgoal_quantile is not None:
            self.subgoal_length.copy_(lengths.quantile(self.subgoal_quantile))
        if self.memory is not None:
            self.memory.take_sizes(lengths.median() if self.subgoal_quantile is None else self.subgoal_length, n_steps)
        if self.body is not None:
            self.body.take_statistics(obs.float(), self.in_metres(self.subgoals(ways)))

    def subgoals(self, ways: th.Tensor) -> th.Tensor:
        """Actions of the high level that ask for differences, ``(..., subgoal_entries)``; 1 is the farthest."""
        return (ways / self.subgoal_scale).clamp(-1, 1)

    def chosen_subgoals(self, where: th.Tensor) -> th.Tensor:
        """What the low level is asked for, ``(batch, subgoal_entries) -> (batch, subgoal_entries)``, in [-1, 1]."""
        # Never drawn: drawn anew at each step, subgoals would come to their mean
        subgoals = self.high_level(where, deterministic=True)
        if self.subgoal_quantile is None:
            return subgoals
        return within_limits(subgoals, self.subgoal_length)

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        """Actions in the first step of an episode, before there is anything to remember."""
        features = self.features(obs)
        assert isinstance(obs, th.Tensor)
        return self.towards(self.chosen_subgoals(self.where(features)), obs, features, deterministic)

    def towards(
        self, subgoals: th.Tensor, obs: th.Tensor, features: th.Tensor, deterministic: bool = False
    ) -> th.Tensor:
        """
        :param subgoals: ``(batch, subgoal_entries)``, in [-1, 1]
        :param obs: ``(batch, obs_dim)``
        :param features: of the observations, ``(batch, obs_dim)``
        :return: actions that lead there, ``(batch, action_dim)``
        """
        if self.body is None:
            return self.low_level(th.cat([features, subgoals], dim=-1), deterministic)
        inputs, turns = self.body(obs.float(), self.in_metres(subgoals))
        return self.body.turn_actions(self.low_level(inputs, deterministic), -turns)

    def low_level_examples(
        self, obs: th.Tensor, features: th.Tensor, subgoals: th.Tensor, actions: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor]:
        """
        :param obs: ``(..., obs_dim)``
        :param features: of the observations, ``(..., obs_dim)``
        :param subgoals: where actions led, ``(..., subgoal_entries)``, in [-1, 1]
        :param actions: ``(..., action_dim)``
        :return: inputs of the low level, ``(..., n_inputs)``, and what it is to answer, ``(..., action_dim)``
        """
        if self.body is None:
            return th.cat([features, subgoals], dim=-1), actions
        inputs, turns = self.body(obs.float(), self.in_metres(subgoals))
        return inputs, self.body.turn_actions(actions, turns)

    def in_metres(self, subgoals: th.Tensor) -> th.Tensor:
        """Differences that subgoals ask for, or whatever x and y are in, ``(..., subgoal_entries)`` both."""
        ways = subgoals * self.subgoal_scale
        if isinstance(self.features_extractor, StandardizingExtractor):
            ways = ways / self.features_extractor.scale[: self.subgoal_entries]
        return ways

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        As in SB3.

        :param observation: of one environment or of n, ``(n, obs_dim)``
        :param state: what the call before returned; None at the start of all episodes
        :param episode_start: where an episode starts and what is remembered is forgotten, ``(n,)``
        :param deterministic: as opposed to drawn actions
        :return: actions, and the state for the next call
        :raises ValueError: the state is another policy's, or of another number of environments
        """
        # Which also tells what is wrong with a tuple, such as a Gymnasium reset returns
        if self.memory is None or isinstance(observation, tuple):
            return super().predict(observation, state, episode_start, deterministic)
        self.set_training_mode(False)
        rows, is_batch = self.obs_to_tensor(observation)
        assert isinstance(rows, th.Tensor)
        with th.no_grad():
            features = self.features(rows)
            where = self.where(features)
            own, position = self.chosen_subgoals(where), where / self.subgoal_scale
            subgoals, remembered = self.memory(own, position, state, episode_start)
            actions = self.towards(subgoals, rows, features, deterministic).cpu().numpy()
        actions = self.unscale_action(actions.reshape(-1, *self.action_space.shape))  # type: ignore[misc]
        return actions if is_batch else actions.squeeze(axis=0), remembered

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        return self(observation, deterministic)

    def set_training_mode(self, mode: bool) -> None:
        if self.training == self.high_level.training == mode:
            return  # SB3 asks at each step
        for policy in (self.high_level, self.low_level):
            policy.set_training_mode(mode)
        self.training = mode

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        del data["normalize_images"]
        return {
            **data,
            "lr_schedule": self._dummy_schedule,  # a loaded policy gets its rate from the algorithm
            "net_arch": self.net_arch,
            "activation_fn": self.activation_fn,
            "features_extractor_class": self.features_extractor_class,
            "features_extractor_kwargs": self.features_extractor_kwargs,
            "optimizer_class": self.optimizer_class,
            "optimizer_kwargs": self.optimizer_kwargs or None,
            "subgoal_entries": self.subgoal_entries,
            "low_level_net_arch": self.low_level_net_arch,
            "subgoal_quantile": self.subgoal_quantile,
            "memory_radius": self.memory_radius,
            "symmetry": self.symmetry,
            **self._high_level_kwargs,
        }


def _is_real(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _box(limit: float, n_entries: int) -> spaces.Box:
    return spaces.Box(-limit, limit, (n_entries,), np.float32)


class HierarchicalValuePolicy(HierarchicalPolicy):
    """:class:`HierarchicalPolicy` with a :class:`~sb3_ext.common.offline_policies.ValuePolicy`, for IQL."""

    high_level_class = ValuePolicy


class HierarchicalWeightedCloningPolicy(HierarchicalPolicy):
    """:class:`HierarchicalPolicy` with a :class:`~sb3_ext.common.offline_policies.WeightedCloningPolicy`, for AWAC."""

    high_level_class = WeightedCloningPolicy


class HierarchicalEnsemblePolicy(HierarchicalPolicy):
    """:class:`HierarchicalPolicy` with an :class:`~sb3_ext.common.policies.EnsemblePolicy`, for Cal-QL and EDAC."""

    high_level_class = EnsemblePolicy
