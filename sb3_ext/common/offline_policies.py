"""Policies of the offline algorithms: an actor with two critics, for IQL a value beside them, for cloning alone."""

from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BaseModel, BasePolicy
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    FlattenExtractor,
    create_mlp,
)
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from sb3_ext.common.actors import CloningActor, cloning_actor_class
from sb3_ext.common.policies import CnnMixin, EnsemblePolicy, MultiInputMixin


class ValueNetwork(BaseModel):
    """
    State values.

    :param observation_space: Observation space.
    :param action_space: Action space.
    :param net_arch: Sizes of the hidden layers.
    :param features_extractor: Network that turns observations into features.
    :param features_dim: Number of features.
    :param activation_fn: Activation after each hidden layer.
    :param normalize_images: Divide images by 255.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        net_arch: list[int],
        features_extractor: BaseFeaturesExtractor,
        features_dim: int,
        activation_fn: type[nn.Module] = nn.ReLU,
        normalize_images: bool = True,
    ):
        super().__init__(
            observation_space,
            action_space,
            features_extractor=features_extractor,
            normalize_images=normalize_images,
        )
        self.v_network = nn.Sequential(*create_mlp(features_dim, 1, net_arch, activation_fn))

    def forward(self, obs: PyTorchObs) -> th.Tensor:
        """``(batch, ...) -> (batch, 1)``"""
        assert isinstance(self.features_extractor, BaseFeaturesExtractor)
        return self.v_network(self.extract_features(obs, self.features_extractor))


class TwoCriticsPolicy(EnsemblePolicy):
    """:class:`~sb3_ext.common.policies.EnsemblePolicy` with ``n_critics=2`` by default."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **{"n_critics": 2, **kwargs})


class WeightedCloningPolicy(TwoCriticsPolicy):
    """:class:`TwoCriticsPolicy` with a Gaussian actor, or a categorical one for discrete actions."""

    actor: CloningActor  # type: ignore[assignment]

    @property
    def actor_class(self) -> type[CloningActor]:  # type: ignore[override]
        return cloning_actor_class(self.action_space)


class ValuePolicy(WeightedCloningPolicy):
    """:class:`WeightedCloningPolicy` with a :class:`ValueNetwork` beside the critics, as IQL needs it."""

    value: ValueNetwork

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        names = ("observation_space", "action_space", "normalize_images", "activation_fn", "net_arch")
        value_kwargs: dict[str, Any] = {name: self.critic_kwargs[name] for name in names}
        self.value = ValueNetwork(**self._update_features_extractor(value_kwargs)).to(self.device)
        make_optimizer: Any = self.optimizer_class
        self.value.optimizer = make_optimizer(self.value.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)


class CloningPolicy(BasePolicy):
    """
    A Gaussian actor, or a categorical one for discrete actions, alone, for behaviour cloning.

    :param observation_space: Observation space.
    :param action_space: Action space.
    :param lr_schedule: Learning rate schedule.
    :param net_arch: Sizes of the hidden layers, ``[256, 256]`` by default.
    :param activation_fn: Activation function.
    :param features_extractor_class: Features extractor to use.
    :param features_extractor_kwargs: Its keyword arguments.
    :param normalize_images: Divide images by 255.
    :param optimizer_class: ``th.optim.Adam`` by default, which then runs its fused kernel.
    :param optimizer_kwargs: Its keyword arguments, without the learning rate.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        net_arch: list[int] | None = None,
        activation_fn: type[nn.Module] = nn.ReLU,
        features_extractor_class: type[BaseFeaturesExtractor] = FlattenExtractor,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
    ):
        if optimizer_kwargs is None and optimizer_class is th.optim.Adam:
            optimizer_kwargs = {"fused": True}
        super().__init__(
            observation_space,
            action_space,
            features_extractor_class,
            features_extractor_kwargs,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
            normalize_images=normalize_images,
            squash_output=isinstance(action_space, spaces.Box),
        )
        self.net_arch = [256, 256] if net_arch is None else net_arch
        if isinstance(self.net_arch, dict):
            raise ValueError(f"There are no critics: net_arch is a list of sizes, not {net_arch}.")
        self.activation_fn = activation_fn
        features_extractor = self.make_features_extractor()
        self.actor = cloning_actor_class(action_space)(
            observation_space,
            action_space,
            self.net_arch,
            features_extractor,
            features_extractor.features_dim,
            activation_fn,
            normalize_images,
        )
        make_optimizer: Any = optimizer_class
        self.actor.optimizer = make_optimizer(self.actor.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            **super()._get_constructor_parameters(),
            "lr_schedule": self._dummy_schedule,  # a loaded policy gets its rate from the algorithm
            "net_arch": self.net_arch,
            "activation_fn": self.activation_fn,
            "features_extractor_class": self.features_extractor_class,
            "features_extractor_kwargs": self.features_extractor_kwargs,
            "optimizer_class": self.optimizer_class,
            "optimizer_kwargs": self.optimizer_kwargs,
        }

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        return self.actor(obs, deterministic)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        return self.actor(observation, deterministic)


class CloningCnnPolicy(CnnMixin, CloningPolicy):
    """:class:`CloningPolicy` for images."""


class CloningMultiInputPolicy(MultiInputMixin, CloningPolicy):
    """:class:`CloningPolicy` for Dict observations."""


class WeightedCloningCnnPolicy(CnnMixin, WeightedCloningPolicy):
    """:class:`WeightedCloningPolicy` for images."""


class WeightedCloningMultiInputPolicy(MultiInputMixin, WeightedCloningPolicy):
    """:class:`WeightedCloningPolicy` for Dict observations."""


class ValueCnnPolicy(CnnMixin, ValuePolicy):
    """:class:`ValuePolicy` for images."""


class ValueMultiInputPolicy(MultiInputMixin, ValuePolicy):
    """:class:`ValuePolicy` for Dict observations."""
