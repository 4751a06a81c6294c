"""A frozen policy that another one is held near to, and how far from it that is."""

import copy
from typing import Any

import numpy as np
import torch as th
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    Distribution,
    MultiCategoricalDistribution,
    StateDependentNoiseDistribution,
)
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import VecNormalize

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
        if isinstance(value, (th.Tensor, th.distributions.Distribution)) or name == "distribution":
            setattr(emptied, name, None)
    return emptied


def structure_of(module: BasePolicy) -> BasePolicy:
    """The module without the numbers that are in its ``state_dict``, which is saved beside it."""
    structure = copy.deepcopy(module).to("meta")
    _copy_unsaved_buffers(module, structure, th.device("cpu"))
    return structure


def of_structure(structure: BasePolicy, device: th.device) -> BasePolicy:
    """A module to load a ``state_dict`` into."""
    module = copy.deepcopy(structure).to_empty(device=device)
    _copy_unsaved_buffers(structure, module, device)
    return module


def _copy_unsaved_buffers(source: BasePolicy, target: BasePolicy, device: th.device) -> None:
    """Those that were registered with ``persistent=False``."""
    for mine, theirs in zip(source.modules(), target.modules(), strict=True):
        for name in mine._non_persistent_buffers_set:
            buffer = getattr(mine, name)
            setattr(theirs, name, None if buffer is None else buffer.clone().to(device))


def check_reference(reference: Any, model: BaseAlgorithm) -> None:
    """
    :raises TypeError: it is no model or policy, or one whose actions have no density, or it has a memory.
    :raises ValueError: it has other spaces, or sees observations normalised in another way.
    """
    policy = reference.policy if isinstance(reference, BaseAlgorithm) else reference
    if not isinstance(policy, BasePolicy):
        raise TypeError(f"reference={reference!r} must be a model or a policy of SB3's, such as PPO.load(...).")
    spaces_of = {name: (getattr(policy, name), getattr(model, name)) for name in ("observation_space", "action_space")}
    for name, (theirs, ours) in spaces_of.items():
        if theirs != ours:
            raise ValueError(f"The reference has the {name} {theirs}, the model {ours}: they must be the same.")
    if isinstance(policy, RecurrentActorCriticPolicy):
        raise TypeError(f"{type(policy).__name__} has a memory, and a reference sees states one by one.")
    if isinstance(reference, BaseAlgorithm) and reference.env is not None:
        _check_normalization(reference.get_vec_normalize_env(), model.get_vec_normalize_env())
    if not has_density(acting_part(policy)):
        raise TypeError(f"{type(policy).__name__} has no action distribution, so that there is no KL divergence to it.")


def _check_normalization(theirs: VecNormalize | None, ours: VecNormalize | None) -> None:
    """:raises ValueError: the two give different observations."""
    found = [normalize if normalize is not None and normalize.norm_obs else None for normalize in (theirs, ours)]
    if found[0] is None and found[1] is None:
        return
    statistics = [_statistics(normalize) for normalize in found if normalize is not None]
    if len(statistics) < 2 or not all(np.allclose(a, b, rtol=1e-3) for a, b in zip(*statistics, strict=True)):
        raise ValueError(
            "The reference's observations are normalised in another way than the model's. Save its VecNormalize, and "
            "give the model VecNormalize.load(path, venv) of it with training=False."
        )


def _statistics(normalize: VecNormalize) -> list[np.ndarray]:
    rms = normalize.obs_rms
    each = [rms[key] for key in sorted(rms)] if isinstance(rms, dict) else [rms]
    return [array for entry in each for array in (entry.mean, entry.var)]


def has_analytic_kl(policy: BasePolicy, reference: BasePolicy) -> bool:
    """Whether :func:`analytic_reverse_kl` is known for their distributions."""
    ours, theirs = (getattr(module, "action_dist", None) for module in (policy, reference))
    # A divergence is the same after a tanh, where both have it
    is_squashed = [getattr(distribution, "bijector", None) is not None for distribution in (ours, theirs)]
    return type(ours) is type(theirs) and type(ours) in ANALYTIC and is_squashed[0] == is_squashed[1]


def analytic_reverse_kl(distribution: Distribution, reference: Distribution) -> th.Tensor:
    """
    :param distribution: of the policy, a kind in ``ANALYTIC``
    :param reference: of the same kind
    :return: KL divergence of the policy from the reference at each state, shape ``(batch,)``
    """
    return ANALYTIC[type(distribution)](distribution.distribution, reference.distribution)


def _normal_kl(p: th.distributions.Normal, r: th.distributions.Normal) -> th.Tensor:
    return gaussian_kl(p.mean, p.stddev.log(), r.mean, r.stddev.log())


ANALYTIC: dict[type, Any] = {
    DiagGaussianDistribution: _normal_kl,
    StateDependentNoiseDistribution: _normal_kl,
    CategoricalDistribution: lambda p, r: categorical_kl(p.logits, r.logits),
    MultiCategoricalDistribution: lambda p, r: sum(
        categorical_kl(a.logits, b.logits) for a, b in zip(p, r, strict=True)
    ),
    BernoulliDistribution: lambda p, r: bernoulli_kl(p.logits, r.logits),
}
