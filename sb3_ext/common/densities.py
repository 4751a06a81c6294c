"""
Log-densities of actions under any policy: of SB3's actor-critic policies, of the actors of SAC and TQC, and of ours.

Actions are as a replay buffer has them, those of a Box scaled to [-1, 1], so that densities of different kinds of
policies can be compared.
"""

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_ext.common.actions import encode_actions
from sb3_ext.common.actors import CLONING_MAX_ACTION, CLONING_MIN_LOG_STD, MlpActor, SquashedGaussianActor
from sb3_ext.common.distributions import SquashedNormal


def acting_part(policy: BasePolicy) -> Any:
    """The module that has the action distribution: an actor, or the policy where both are one; None if neither is."""
    return policy if isinstance(policy, ActorCriticPolicy) else getattr(policy, "actor", None)


def has_density(module: Any) -> bool:
    """Whether :func:`action_log_prob` takes this module; a deterministic actor has no density."""
    if isinstance(module, MlpActor):
        return type(module).distribution is not MlpActor.distribution
    return isinstance(module, ActorCriticPolicy) or hasattr(module, "get_action_dist_params")


def action_log_prob(module: Any, obs: PyTorchObs, actions: th.Tensor) -> th.Tensor:
    """
    :param module: an actor-critic policy or an actor
    :param obs: observations, ``(batch, ...)``
    :param actions: ``(batch, action_dim)``
    :return: shape ``(batch,)``
    """
    if isinstance(module, ActorCriticPolicy):
        return module.get_distribution(obs).log_prob(from_buffer(module, actions)) + log_volume(module)
    if isinstance(module, (MlpActor, SquashedGaussianActor)):
        return module.log_prob(obs, encode_actions(actions, module.action_space))
    mean, log_std, latent = module.get_action_dist_params(obs)
    # A tanh never reaches 1
    actions = actions.clamp(-CLONING_MAX_ACTION, CLONING_MAX_ACTION)
    if latent:  # gSDE
        return module.action_dist.proba_distribution(mean, log_std, **latent).log_prob(actions)
    return SquashedNormal(mean, log_std.clamp(min=CLONING_MIN_LOG_STD)).log_prob(actions)


def from_buffer(policy: ActorCriticPolicy, actions: th.Tensor) -> th.Tensor:
    """Actions as the policy's own distribution has them."""
    if isinstance(policy.action_space, spaces.Discrete):
        return actions.long().flatten()
    if isinstance(policy.action_space, spaces.MultiBinary):
        return actions.float()
    if not _is_in_own_units(policy):
        return actions
    low, width = _bounds(policy, actions.device)
    return low + 0.5 * (actions + 1) * width


def to_buffer(policy: ActorCriticPolicy, actions: th.Tensor) -> th.Tensor:
    """The inverse, of actions ``(batch, action_dim)``; a Gaussian's may be beyond [-1, 1]."""
    if not _is_in_own_units(policy):
        return actions
    low, width = _bounds(policy, actions.device)
    return 2 * (actions - low) / width - 1


def log_volume(policy: ActorCriticPolicy) -> float:
    """What the log-density of scaled actions is above that of actions in their own units."""
    if not _is_in_own_units(policy):
        return 0.0
    space = policy.action_space
    assert isinstance(space, spaces.Box)
    return float(np.log((space.high - space.low) / 2).sum())  # NumPy's: no part of an update that is recorded


def _is_in_own_units(policy: ActorCriticPolicy) -> bool:
    return isinstance(policy.action_space, spaces.Box) and not policy.squash_output


def _bounds(policy: ActorCriticPolicy, device: th.device) -> tuple[th.Tensor, th.Tensor]:
    """Lower bounds and widths, each of shape ``(action_dim,)``."""
    space = policy.action_space
    assert isinstance(space, spaces.Box)
    low, high = (th.as_tensor(bound, device=device).flatten() for bound in (space.low, space.high))
    return low, high - low
