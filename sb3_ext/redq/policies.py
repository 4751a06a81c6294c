"""Policies for REDQ: two actors, each with a batched ensemble of critics."""

from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    NatureCNN,
    create_mlp,
)
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.sac.policies import LOG_STD_MAX, LOG_STD_MIN, SACPolicy
from stable_baselines3.sac.policies import Actor as SACActor
from torch import nn

from sb3_ext.common.distributions import SquashedNormal, TruncatedNormal
from sb3_ext.common.ensemble import EnsembleCritic

# Cloning maximises a log-density, and both limits keep it bounded: a tanh never reaches a demonstrated action of
# exactly +-1, and a Gaussian that fits a constant action perfectly would shrink for ever
CLONING_MAX_ACTION = 0.999
CLONING_MIN_LOG_STD = -5.0

# Arguments of SAC's policy and actor for gSDE, which is not offered here
SDE_ARGUMENTS = ("use_sde", "log_std_init", "use_expln", "clip_mean")


class SquashedGaussianActor(SACActor):
    """SAC's actor: a diagonal Gaussian with state-dependent standard deviation, squashed by tanh into [-1, 1]."""

    def distribution(self, obs: PyTorchObs) -> SquashedNormal:
        """Action distribution at observations of shape ``(batch, ...)``."""
        assert isinstance(self.features_extractor, BaseFeaturesExtractor)
        assert isinstance(self.log_std, nn.Linear)
        latent = self.latent_pi(self.extract_features(obs, self.features_extractor))
        # Both heads in one product
        weight = th.cat([self.mu.weight, self.log_std.weight])
        bias = th.cat([self.mu.bias, self.log_std.bias])
        mean, log_std = nn.functional.linear(latent, weight, bias).chunk(2, dim=1)
        return SquashedNormal(mean, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX))

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        distribution = self.distribution(obs)
        return distribution.mode if deterministic else distribution.rsample()

    def action_log_prob(  # type: ignore[override]
        self, obs: PyTorchObs, noise: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor]:
        """
        :param obs: observations, ``(batch, ...)``
        :param noise: standard normal noise, ``(batch, action_dim)``
        :return: actions, ``(batch, action_dim)``, and their log-densities, ``(batch,)``
        """
        return self.distribution(obs).rsample_log_prob(noise)

    def log_prob(self, obs: PyTorchObs, actions: th.Tensor) -> th.Tensor:
        """
        Log-probability of given actions, finite for actions of exactly -1 and 1.

        :param obs: observations, ``(batch, ...)``
        :param actions: scaled to [-1, 1], ``(batch, action_dim)``
        :return: shape ``(batch,)``
        """
        distribution = self.distribution(obs)
        distribution.log_scale = distribution.log_scale.clamp(min=CLONING_MIN_LOG_STD)
        return distribution.log_prob(actions.clamp(-CLONING_MAX_ACTION, CLONING_MAX_ACTION))


class TanhMeanActor(BasePolicy):
    """
    Actor whose most probable action is the tanh of a network's output. A class that derives from it has
    ``distribution``.

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
        action_space: spaces.Box,
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
            squash_output=True,
        )
        self.mu = nn.Sequential(*create_mlp(features_dim, get_action_dim(action_space), net_arch, activation_fn))

    def mean(self, obs: PyTorchObs) -> th.Tensor:
        """Most probable actions, ``(batch, ...) -> (batch, action_dim)``."""
        assert isinstance(self.features_extractor, BaseFeaturesExtractor)
        return th.tanh(self.mu(self.extract_features(obs, self.features_extractor)))

    def distribution(self, obs: PyTorchObs) -> Any:
        """Action distribution at observations of shape ``(batch, ...)``."""
        raise NotImplementedError

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        distribution = self.distribution(obs)
        return distribution.mode if deterministic else distribution.rsample()

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        return self(observation, deterministic)

    def log_prob(self, obs: PyTorchObs, actions: th.Tensor) -> th.Tensor:
        """Log-density of given actions in [-1, 1], ``(batch, action_dim) -> (batch,)``."""
        return self.distribution(obs).log_prob(actions)


class TruncatedNormalActor(TanhMeanActor):
    """
    Actor with a tanh mean and a fixed standard deviation, whose samples are clamped into [-1, 1] (the actor of DrQ-v2,
    Yarats et al. 2021, https://arxiv.org/abs/2107.09645). Actions for the critics' target and for the actor's loss
    have clipped noise, actions in the environment do not. All arguments of :class:`TanhMeanActor`, and:

    :param action_std: Standard deviation of the actions, positive; the actions' range is [-1, 1].
    :param noise_clip: Largest noise in the losses, positive.
    """

    def __init__(self, *args: Any, action_std: float = 0.1, noise_clip: float = 0.3, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if action_std <= 0 or noise_clip <= 0:
            raise ValueError(f"action_std={action_std} and noise_clip={noise_clip} must be positive.")
        self.action_std = action_std
        self.noise_clip = noise_clip

    def distribution(self, obs: PyTorchObs) -> TruncatedNormal:
        return TruncatedNormal(self.mean(obs), self.action_std)

    def action_log_prob(self, obs: PyTorchObs, noise: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        :param obs: observations, ``(batch, ...)``
        :param noise: standard normal noise, ``(batch, action_dim)``, clipped here after scaling
        :return: actions, ``(batch, action_dim)``, and their log-densities, ``(batch,)``
        """
        distribution = self.distribution(obs)
        actions = distribution.rsample(noise, self.noise_clip)
        return actions, distribution.log_prob(actions)


class REDQPolicy(SACPolicy):
    """
    SAC's policy with the critics as one batched ensemble.

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

    actor: "SquashedGaussianActor | TruncatedNormalActor"  # type: ignore[assignment]
    critic: EnsembleCritic  # type: ignore[assignment]
    critic_target: EnsembleCritic  # type: ignore[assignment]

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

    def make_actor(  # type: ignore[override]
        self, features_extractor: BaseFeaturesExtractor | None = None
    ) -> "SquashedGaussianActor | TruncatedNormalActor":
        return SquashedGaussianActor(**self._update_features_extractor(self.actor_kwargs, features_extractor)).to(
            self.device
        )

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


class TruncatedNormalPolicy(REDQPolicy):
    """
    :class:`REDQPolicy` with the truncated-normal actor of fixed standard deviation. All arguments of that class, and:

    :param action_std: Standard deviation of the actions, positive; the actions' range is [-1, 1].
    :param noise_clip: Largest noise in the losses, positive.
    """

    def __init__(self, *args: Any, action_std: float = 0.1, noise_clip: float = 0.3, **kwargs: Any):
        self._noise_kwargs: dict[str, Any] = {"action_std": action_std, "noise_clip": noise_clip}
        super().__init__(*args, **kwargs)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), **self._noise_kwargs}

    def make_actor(  # type: ignore[override]
        self, features_extractor: BaseFeaturesExtractor | None = None
    ) -> TruncatedNormalActor:
        actor_kwargs: dict[str, Any] = {
            key: value for key, value in self.actor_kwargs.items() if key not in SDE_ARGUMENTS
        }
        actor_kwargs = self._update_features_extractor(actor_kwargs, features_extractor)
        return TruncatedNormalActor(**actor_kwargs, **self._noise_kwargs).to(self.device)


MlpPolicy = REDQPolicy


class CnnPolicy(REDQPolicy):
    """:class:`REDQPolicy` for images: ``NatureCNN`` extracts the features."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **{"features_extractor_class": NatureCNN, **kwargs})


class MultiInputPolicy(REDQPolicy):
    """:class:`REDQPolicy` for Dict observations: ``CombinedExtractor`` extracts the features."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **{"features_extractor_class": CombinedExtractor, **kwargs})


class TruncatedNormalCnnPolicy(TruncatedNormalPolicy, CnnPolicy):
    """:class:`TruncatedNormalPolicy` for images."""


class TruncatedNormalMultiInputPolicy(TruncatedNormalPolicy, MultiInputPolicy):
    """:class:`TruncatedNormalPolicy` for Dict observations."""
