"""A frozen policy that another one is held near to, and how far from it that is."""

import copy
from typing import Any

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    Distribution,
    MultiCategoricalDistribution,
)
from stable_baselines3.common.policies import BasePolicy

from sb3_ext.common.densities import acting_part, has_density
from sb3_ext.common.losses import bernoulli_kl, categorical_kl, gaussian_kl


def freeze(policy: BasePolicy) -> BasePolicy:
    """
    A copy of a policy, or of its actor where that stands by itself, that no longer learns: in evaluation mode, without
    an optimizer.
    """
    source = acting_part(policy)
    # What belongs to training, or is left over from the last forward pass, is not copied
    memo: dict[int, Any] = {}
    for module in source.modules():
        if "optimizer" in vars(module):
            memo[id(module.optimizer)] = None
        if "action_dist" in vars(module):
            memo[id(module.action_dist)] = _emptied(module.action_dist)
    frozen = copy.deepcopy(source, memo)
    frozen.requires_grad_(False)
    frozen.set_training_mode(False)
    return frozen


def _emptied(distribution: Distribution) -> Distribution:
    emptied = copy.copy(distribution)
    for name, value in vars(distribution).items():
        if isinstance(value, th.Tensor) or name == "distribution":
            setattr(emptied, name, None)
    return emptied


def structure_of(module: BasePolicy) -> BasePolicy:
    """The module without its numbers, which are saved beside it."""
    return copy.deepcopy(module).to("meta")


def of_structure(structure: BasePolicy, device: th.device) -> BasePolicy:
    """A module to load numbers into."""
    return copy.deepcopy(structure).to_empty(device=device)


def check_reference(reference: Any, model: BaseAlgorithm) -> None:
    """
    :raises TypeError: it is no model or policy, or one whose actions have no density.
    :raises ValueError: it has other spaces.
    """
    policy = reference.policy if isinstance(reference, BaseAlgorithm) else reference
    if not isinstance(policy, BasePolicy):
        raise TypeError(f"reference={reference!r} must be a model or a policy of SB3's, such as PPO.load(...).")
    spaces_of = {name: (getattr(policy, name), getattr(model, name)) for name in ("observation_space", "action_space")}
    for name, (theirs, ours) in spaces_of.items():
        if theirs != ours:
            raise ValueError(f"The reference has the {name} {theirs}, the model {ours}: they must be the same.")
    if not has_density(acting_part(policy)):
        raise TypeError(f"{type(policy).__name__} has no action distribution, so that there is no KL divergence to it.")


def has_analytic_kl(policy: BasePolicy, reference: BasePolicy) -> bool:
    """Whether :func:`analytic_reverse_kl` is known for their distributions."""
    kinds = [type(getattr(module, "action_dist", None)) for module in (policy, reference)]
    return kinds[0] is kinds[1] and kinds[0] in ANALYTIC


def analytic_reverse_kl(distribution: Distribution, reference: Distribution) -> th.Tensor:
    """
    :param distribution: of the policy, a kind in ``ANALYTIC``
    :param reference: of the same kind
    :return: KL divergence of the policy from the reference at each state, shape ``(batch,)``
    """
    return ANALYTIC[type(distribution)](distribution.distribution, reference.distribution)


ANALYTIC: dict[type, Any] = {
    DiagGaussianDistribution: lambda p, r: gaussian_kl(p.mean, p.stddev.log(), r.mean, r.stddev.log()),
    CategoricalDistribution: lambda p, r: categorical_kl(p.logits, r.logits),
    MultiCategoricalDistribution: lambda p, r: sum(
        categorical_kl(a.logits, b.logits) for a, b in zip(p, r, strict=True)
    ),
    BernoulliDistribution: lambda p, r: bernoulli_kl(p.logits, r.logits),
}
