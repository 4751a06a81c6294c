"""A policy with an ensemble of critics, and what makes any policy one for images or Dict observations."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    NatureCNN,
)
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.sac.policies import Actor as SACActor
from stable_baselines3.sac.policies import SACPolicy
from torch import nn

from sb3_ext.common.actors import SquashedGaussianActor
from sb3_ext.common.ensemble import EnsembleCritic

# Arguments of SAC's policy and actor for gSDE, which is not offered here
SDE_ARGUMENTS = ("use_sde", "log_std_init", "use_expln", "clip_mean")


class EnsemblePolicy(SACPolicy):
    """
    SAC's policy with the critics as one batched ensemble, and an actor of ``actor_class``.

    :param observation_space: Observation space.
    :param action_space: Action space.
    :param lr_schedule: Learning rate schedule (could be constant).
    :param net_arch: Sizes of the hidden layers, a list or ``dict(pi=..., qf=...)``.
    :param activation_fn: Activation function.
    :param features_extractor_class: Features extractor to use.
    :param features_extractor_kwargs: Its keyword arguments.
    :param normalize_images: Divide images by 255.
    :param optimizer_class: ``th.optim.Adam`` by default, which then runs its fused kernel.
    :param optimizer_kwargs: Its keyword arguments, without the learning rate.
    :param n_critics: Number of critics.
    :param share_features_extractor: Use the actor's features extractor also for the critics (it then learns from the
        actor's loss alone).
    :param layer_norm: Layer normalisation in the critics (DroQ, RLPD).
    :param dropout: Dropout probability in the critics, in [0, 1); DroQ (Hiraoka et al. 2021,
        https://arxiv.org/abs/2110.02034) uses 0.01 with two critics. Target critics drop units too, as in the paper.
    """

    actor: Any
    actor_class: type[BasePolicy] = SquashedGaussianActor
    critic: EnsembleCritic  # type: ignore[assignment]
    critic_target: EnsembleCritic  # type: ignore[assignment]
    # Further arguments of the actor
    _actor_kwargs: Mapping[str, Any] = MappingProxyType({})

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] = nn.ReLU,
        features_extractor_class: type[BaseFeaturesExtractor] = FlattenExtractor,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        n_critics: int = 10,
        share_features_extractor: bool = False,
        layer_norm: bool = False,
        dropout: float = 0.0,
    ):
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout} must be a probability in [0, 1).")
        if optimizer_kwargs is None and optimizer_class is th.optim.Adam:
            optimizer_kwargs = {"fused": True}
        # SACPolicy builds the networks in its constructor, before attributes could be set
        self._ensemble_kwargs: dict[str, Any] = {"layer_norm": layer_norm, "dropout": dropout}
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch,
            activation_fn,
            features_extractor_class=features_extractor_class,
            features_extractor_kwargs=features_extractor_kwargs,
            normalize_images=normalize_images,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
            n_critics=n_critics,
            share_features_extractor=share_features_extractor,
        )

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        for sde_argument in SDE_ARGUMENTS:
            del data[sde_argument]
        return {
            **data,
            "normalize_images": self.normalize_images,
            "share_features_extractor": self.share_features_extractor,
            **self._ensemble_kwargs,
        }

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> Any:
        actor_kwargs = {**self._update_features_extractor(self.actor_kwargs, features_extractor), **self._actor_kwargs}
        if not issubclass(self.actor_class, SACActor):
            actor_kwargs = {key: value for key, value in actor_kwargs.items() if key not in SDE_ARGUMENTS}
        return self.actor_class(**actor_kwargs).to(self.device)

    def make_critic(  # type: ignore[override]
        self, features_extractor: BaseFeaturesExtractor | None = None
    ) -> EnsembleCritic:
        critic_kwargs = self._update_features_extractor(self.critic_kwargs, features_extractor)
        return EnsembleCritic(**critic_kwargs, **self._ensemble_kwargs).to(self.device)

    def set_training_mode(self, mode: bool) -> None:
        if self.actor.training == self.critic.training == self.training == mode:
            return  # SB3 asks at each step, and a walk through the modules takes longer than acting
        super().set_training_mode(mode)
        # The target's features stay in evaluation mode as in SB3, its dropout is part of the target's definition
        self.critic_target.q_networks.train(mode)


class CnnMixin:
    """Images: ``NatureCNN`` extracts the features."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **{"features_extractor_class": NatureCNN, **kwargs})


class MultiInputMixin:
    """Dict observations: ``CombinedExtractor`` extracts the features."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **{"features_extractor_class": CombinedExtractor, **kwargs})


MlpPolicy = EnsemblePolicy


class CnnPolicy(CnnMixin, EnsemblePolicy):
    """:class:`EnsemblePolicy` for images."""


class MultiInputPolicy(MultiInputMixin, EnsemblePolicy):
    """:class:`EnsemblePolicy` for Dict observations."""
