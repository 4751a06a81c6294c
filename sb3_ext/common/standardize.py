"""Observation standardisation as a part of the policy: saved with it, and ``predict`` takes raw observations."""

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import nn

# Added to each standard deviation, as in TD3+BC (Fujimoto & Gu 2021, https://arxiv.org/abs/2106.06860)
STD_EPSILON = 1e-3
# As in VecNormalize: entries that hardly vary in the data may be far off elsewhere
CLIP = 10.0


class StandardizingExtractor(FlattenExtractor):
    """
    Flattens observations and standardises them by statistics that are set once: ``(obs - mean) / (std + 1e-3)``,
    clipped to [-10, 10]. Without statistics it is the identity, apart from the clipping.

    :param observation_space: Space of vectors.
    """

    mean: th.Tensor
    scale: th.Tensor

    def __init__(self, observation_space: spaces.Box):
        super().__init__(observation_space)
        # Buffers: they move with the module, are saved in its state dict, and no optimizer sees them
        self.register_buffer("mean", th.zeros(self.features_dim))
        self.register_buffer("scale", th.ones(self.features_dim))

    def set_statistics(self, observations: np.ndarray) -> None:
        """
        :param observations: data to take mean and standard deviation of, shape ``(n, *obs_shape)``
        """
        rows = observations.reshape(len(observations), -1).astype(np.float64)
        self.mean.copy_(th.as_tensor(rows.mean(axis=0)))
        self.scale.copy_(th.as_tensor(1 / (rows.std(axis=0) + STD_EPSILON)))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """``(batch, *obs_shape) -> (batch, features_dim)``"""
        return ((super().forward(observations) - self.mean) * self.scale).clamp(-CLIP, CLIP)


def set_statistics(policy: nn.Module, observations: np.ndarray) -> None:
    """Give every :class:`StandardizingExtractor` in a policy (actor's, critics', targets') the same statistics."""
    for module in policy.modules():
        if isinstance(module, StandardizingExtractor):
            module.set_statistics(observations)


def with_standardizing_extractor(policy_kwargs: dict[str, Any], observation_space: spaces.Space) -> dict[str, Any]:
    """
    A policy's arguments with :class:`StandardizingExtractor` among them.

    :raises ValueError: observations are no vectors, or another extractor is asked for.
    """
    if not isinstance(observation_space, spaces.Box) or is_image_space(observation_space):
        raise ValueError(
            f"standardize_observations works on vectors, not on {observation_space}. "
            "Wrap the environment in VecNormalize instead."
        )
    extractor = policy_kwargs.get("features_extractor_class", StandardizingExtractor)
    if extractor is not StandardizingExtractor:
        raise ValueError(f"standardize_observations and the features extractor {extractor} exclude each other.")
    return {**policy_kwargs, "features_extractor_class": StandardizingExtractor}
