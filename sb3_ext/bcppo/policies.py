"""Policies for BCPPO: SB3's own, and one with a truncated-normal actor and a critic with layer normalisation."""

import math
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import DiagGaussianDistribution, Distribution
from stable_baselines3.common.policies import (
    ActorCriticCnnPolicy,
    ActorCriticPolicy,
    MultiInputActorCriticPolicy,
)
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import create_mlp
from stable_baselines3.common.type_aliases import Schedule
from torch import nn

from sb3_ext.common.actors import CLONING_MIN_LOG_STD
from sb3_ext.common.distributions import ClampedNormal
from sb3_ext.common.losses import gaussian_kl
from sb3_ext.common.reference import ANALYTIC

# Of the standard deviation, which the network gives for each state
MAX_LOG_STD = 0.0
ENTROPY_OF_UNIT_NORMAL = 0.5 * math.log(2 * math.pi * math.e)

MlpPolicy, CnnPolicy, MultiInputPolicy = ActorCriticPolicy, ActorCriticCnnPolicy, MultiInputActorCriticPolicy


class TruncatedNormalDistribution(Distribution):
    """
    Diagonal Gaussian with a tanh mean, for actions that are clamped into [-1, 1] on their way to the environment.
    Samples, log-densities and the entropy are those before clamping: probability ratios would be biased otherwise.

    :param action_dim: Number of actions.
    :param log_std_min: Least logarithm of the standard deviation, which cloning would shrink for ever where it fits.
    """

    distribution: ClampedNormal  # type: ignore[assignment]

    def __init__(self, action_dim: int, log_std_min: float = CLONING_MIN_LOG_STD):
        super().__init__()
        self.action_dim = action_dim
        self.log_std_min = log_std_min

    def proba_distribution_net(  # type: ignore[override]
        self, latent_dim: int, log_std_init: float = 0.0
    ) -> tuple[nn.Module, nn.Module]:
        """
        :return: layers for the mean, before the tanh, and for the logarithm of the standard deviation
        """
        log_std = nn.Linear(latent_dim, self.action_dim)
        nn.init.orthogonal_(log_std.weight, gain=0.01)
        nn.init.constant_(log_std.bias, log_std_init)
        return nn.Linear(latent_dim, self.action_dim), log_std

    def proba_distribution(  # type: ignore[override]
        self, mean_actions: th.Tensor, log_std: th.Tensor
    ) -> "TruncatedNormalDistribution":
        """
        :param mean_actions: before the tanh, ``(batch, action_dim)``
        :param log_std: ``(batch, action_dim)``
        """
        self.distribution = ClampedNormal(th.tanh(mean_actions), log_std.clamp(self.log_std_min, MAX_LOG_STD))
        return self

    def log_prob(self, actions: th.Tensor) -> th.Tensor:
        return self.distribution.log_prob(actions)

    def entropy(self) -> th.Tensor:
        return (self.distribution.log_scale + ENTROPY_OF_UNIT_NORMAL).sum(dim=-1)

    def sample(self) -> th.Tensor:
        return self.distribution.rsample(clamps=False)

    def mode(self) -> th.Tensor:
        return self.distribution.mode

    def actions_from_params(  # type: ignore[override]
        self, mean_actions: th.Tensor, log_std: th.Tensor, deterministic: bool = False
    ) -> th.Tensor:
        return self.proba_distribution(mean_actions, log_std).get_actions(deterministic=deterministic)

    def log_prob_from_params(  # type: ignore[override]
        self, mean_actions: th.Tensor, log_std: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor]:
        actions = self.actions_from_params(mean_actions, log_std)
        return actions, self.log_prob(actions)


class TruncatedNormalMlpPolicy(ActorCriticPolicy):
    """
    A tanh mean and a standard deviation for each state, both from one network, actions clamped into [-1, 1], and a
    critic with layer normalisation. Arguments are those of SB3's ``ActorCriticPolicy``, by default with
    ``net_arch=dict(pi=[256, 256], vf=[256, 256])``, ``activation_fn=nn.ReLU`` and ``log_std_init=-2``, and:

    :param log_std_min: Least logarithm of the standard deviation, whose unit is half the range of an action. The
        smaller, the more exactly clones act, and the smaller the steps that PPO can take.
    :raises ValueError: actions are not continuous.
    """

    log_std: nn.Linear  # type: ignore[assignment]
    log_std_net: nn.Linear

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        log_std_min: float = CLONING_MIN_LOG_STD,
        **kwargs: Any,
    ):
        self.log_std_min = log_std_min
        if not isinstance(action_space, spaces.Box):
            raise ValueError(f"TruncatedNormalMlpPolicy takes Box actions, not {action_space}: use 'MlpPolicy'.")
        if kwargs.get("use_sde"):
            raise ValueError("use_sde is for SB3's own policies: the truncated normal has noise of its own.")
        defaults = {"net_arch": {"pi": [256, 256], "vf": [256, 256]}, "activation_fn": nn.ReLU, "log_std_init": -2.0}
        super().__init__(observation_space, action_space, lr_schedule, **{**defaults, **kwargs})
        # Actions are in [-1, 1], whatever the bounds of the environment's
        self._squash_output = True

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "log_std_min": self.log_std_min}

    def unscale_action(self, scaled_action: np.ndarray) -> np.ndarray:
        """
        :param scaled_action: of any size, clamped into [-1, 1] first
        :return: within the bounds of the environment's actions
        """
        return super().unscale_action(np.clip(scaled_action, -1.0, 1.0))

    def _build_mlp_extractor(self) -> None:
        super()._build_mlp_extractor()
        sizes = self.net_arch.get("vf", []) if isinstance(self.net_arch, dict) else self.net_arch
        layers = create_mlp(self.features_dim, -1, sizes, self.activation_fn, post_linear_modules=[nn.LayerNorm])
        self.mlp_extractor.value_net = nn.Sequential(*layers).to(self.device)

    def _build(self, lr_schedule: Schedule) -> None:
        # SB3 builds a mean and a parameter for a Gaussian, and an optimizer for both; only the latter is replaced
        self.action_dist = _GaussianHeads(get_action_dim(self.action_space))
        super()._build(lr_schedule)
        # SB3's algorithms take a `log_std` for a tensor
        self.log_std_net = self.log_std
        del self.log_std
        self.action_dist = TruncatedNormalDistribution(get_action_dim(self.action_space), self.log_std_min)

    def _get_action_dist_from_latent(self, latent_pi: th.Tensor) -> TruncatedNormalDistribution:
        assert isinstance(self.action_dist, TruncatedNormalDistribution)
        return self.action_dist.proba_distribution(self.action_net(latent_pi), self.log_std_net(latent_pi))


class _GaussianHeads(DiagGaussianDistribution):
    """Makes SB3's ``_build`` take the layers of :class:`TruncatedNormalDistribution`."""

    proba_distribution_net = TruncatedNormalDistribution.proba_distribution_net  # type: ignore[assignment]


# Before clamping, as log-densities are
ANALYTIC[TruncatedNormalDistribution] = lambda p, r: gaussian_kl(p.loc, p.log_scale, r.loc, r.log_scale)
