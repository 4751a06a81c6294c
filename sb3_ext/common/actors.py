"""Actors that SB3 does not have, with distributions that a compiler or a CUDA graph can take."""

from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, create_mlp
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.sac.policies import LOG_STD_MAX, LOG_STD_MIN
from stable_baselines3.sac.policies import Actor as SACActor
from torch import nn

from sb3_ext.common.actions import action_size
from sb3_ext.common.distributions import ClampedNormal, OneHotCategorical, SquashedNormal, TruncatedNormal

# Cloning maximises a log-density, and both limits keep it bounded: a tanh never reaches a demonstrated action of
# exactly +-1, and a Gaussian that fits a constant action perfectly would shrink for ever
CLONING_MAX_ACTION = 0.999
CLONING_MIN_LOG_STD = -5.0

# Of the standard deviations that AWAC and IQL learn
GAUSSIAN_LOG_STD_MIN, GAUSSIAN_LOG_STD_MAX = -5.0, 2.0


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


class MlpActor(BasePolicy):
    """
    A fully connected network with one output per action. A class that derives from it has ``distribution``.

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
            squash_output=isinstance(action_space, spaces.Box),
        )
        self.net_arch, self.features_dim, self.activation_fn = net_arch, features_dim, activation_fn
        self.mlp = nn.Sequential(*create_mlp(features_dim, action_size(action_space), net_arch, activation_fn))

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            **super()._get_constructor_parameters(),
            "net_arch": self.net_arch,
            "features_extractor": self.features_extractor,
            "features_dim": self.features_dim,
            "activation_fn": self.activation_fn,
        }

    def outputs(self, obs: PyTorchObs) -> th.Tensor:
        """Of the network, ``(batch, ...) -> (batch, action_size)``."""
        assert isinstance(self.features_extractor, BaseFeaturesExtractor)
        return self.mlp(self.extract_features(obs, self.features_extractor))

    def distribution(self, obs: PyTorchObs) -> Any:
        """Action distribution at observations of shape ``(batch, ...)``."""
        raise NotImplementedError

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        distribution = self.distribution(obs)
        return distribution.mode if deterministic else distribution.rsample()

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        return self(observation, deterministic)

    def log_prob(self, obs: PyTorchObs, actions: th.Tensor) -> th.Tensor:
        """Log-density of given actions, in [-1, 1] or one-hot, ``(batch, action_size) -> (batch,)``."""
        return self.distribution(obs).log_prob(actions)


class TanhMeanActor(MlpActor):
    """Actor whose most probable action is the tanh of a network's output. Arguments are those of :class:`MlpActor`."""

    def mean(self, obs: PyTorchObs) -> th.Tensor:
        """Most probable actions, ``(batch, ...) -> (batch, action_dim)``."""
        return th.tanh(self.outputs(obs))


class TruncatedNormalActor(TanhMeanActor):
    """
    Actor with a tanh mean and a fixed standard deviation, whose samples are clamped into [-1, 1] (the actor of DrQ-v2,
    Yarats et al. 2021, https://arxiv.org/abs/2107.09645). Actions for the critics' target and for the actor's loss
    have clipped noise, actions in the environment do not. All arguments of :class:`MlpActor`, and:

    :param action_std: Standard deviation of the actions, positive; the actions' range is [-1, 1].
    :param noise_clip: Largest noise in the losses, positive.
    """

    def __init__(self, *args: Any, action_std: float = 0.1, noise_clip: float = 0.3, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if action_std <= 0 or noise_clip <= 0:
            raise ValueError(f"action_std={action_std} and noise_clip={noise_clip} must be positive.")
        self.action_std = action_std
        self.noise_clip = noise_clip

    def _get_constructor_parameters(self) -> dict[str, Any]:
        parameters = super()._get_constructor_parameters()
        return {**parameters, "action_std": self.action_std, "noise_clip": self.noise_clip}

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


class DeterministicActor(TanhMeanActor):
    """TD3's actor: the tanh of a network's output. Arguments are those of :class:`MlpActor`."""

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        return self.mean(obs)


class GaussianActor(TanhMeanActor):
    """
    A tanh mean and one learnt standard deviation per action, the same everywhere, as in AWAC and IQL. Arguments are
    those of :class:`MlpActor`.
    """

    # Algorithms that regress to actions, and so never learn the deviation, set it: every action is the mean then
    is_deterministic = False

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.log_std = nn.Parameter(th.zeros(action_size(self.action_space)))

    def get_extra_state(self) -> th.Tensor:
        # Saved with the weights: a policy may be loaded without its algorithm. Of floats, as all of a state dict is
        return th.tensor(float(self.is_deterministic))

    def set_extra_state(self, state: th.Tensor) -> None:
        self.is_deterministic = bool(state)

    def sample(self, obs: PyTorchObs, noise: th.Tensor) -> th.Tensor:
        """
        :param noise: standard normal noise, ``(..., batch, action_dim)``
        :return: actions of that shape
        """
        distribution = self.distribution(obs)
        return distribution.mode.expand_as(noise) if self.is_deterministic else distribution.rsample(noise)

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        return super().forward(obs, deterministic or self.is_deterministic)

    def distribution(self, obs: PyTorchObs) -> ClampedNormal:
        return ClampedNormal(self.mean(obs), self.log_std.clamp(GAUSSIAN_LOG_STD_MIN, GAUSSIAN_LOG_STD_MAX))


class CategoricalActor(MlpActor):
    """Actor for discrete actions. Arguments are those of :class:`MlpActor`."""

    def distribution(self, obs: PyTorchObs) -> OneHotCategorical:
        """Distribution of one-hot actions at observations of shape ``(batch, ...)``."""
        return OneHotCategorical(self.outputs(obs))

    def sample(self, obs: PyTorchObs, noise: th.Tensor) -> th.Tensor:
        """
        :param noise: standard normal noise, ``(..., batch, n_actions)``
        :return: one-hot actions of that shape
        """
        return self.distribution(obs).rsample(noise)

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        """Indices of actions, ``(batch, ...) -> (batch,)``"""
        return super().forward(obs, deterministic).argmax(dim=-1)


CloningActor = GaussianActor | CategoricalActor


def cloning_actor_class(action_space: spaces.Space) -> type[CloningActor]:
    """What clones actions of this space."""
    return CategoricalActor if isinstance(action_space, spaces.Discrete) else GaussianActor


def cloning_log_prob(distribution: Any, actions: th.Tensor, deterministic: bool) -> th.Tensor:
    """Log-density of actions, or minus their squared distance from a distribution's mean, ``(batch,)``."""
    if deterministic:
        return -(actions - distribution.mode).square().sum(dim=-1)
    return distribution.log_prob(actions)


def set_deterministic(actor: CloningActor, deterministic: bool) -> None:
    """
    Whether an actor acts by its mean, as one that regresses to actions does.

    :raises ValueError: the actor has no mean that could regress to actions
    """
    if isinstance(actor, GaussianActor):
        actor.is_deterministic = deterministic
    elif deterministic:
        raise ValueError("deterministic_actor=True regresses to continuous actions; discrete ones are classes.")
