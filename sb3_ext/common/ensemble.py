"""Networks that hold a whole ensemble in stacked weights: one batched matrix product a layer, no loop over members."""

import math
from itertools import pairwise

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BaseModel
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn


def _member_weights(weight: th.Tensor, members: th.Tensor | None) -> th.Tensor:
    """Rows of a stacked parameter, ``(n_members, ...)``: all, or those that ``members`` (int64 indices) names."""
    return weight if members is None else weight.index_select(0, members)


class EnsembleLinear(nn.Module):
    """
    ``n_members`` linear layers, each initialised like ``nn.Linear``.

    :param n_members: Number of layers in the stack.
    :param in_features: Size of an input row.
    :param out_features: Size of an output row.
    """

    def __init__(self, n_members: int, in_features: int, out_features: int):
        super().__init__()
        bound = 1 / math.sqrt(in_features)
        self.weight = nn.Parameter(th.empty(n_members, in_features, out_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(th.empty(n_members, 1, out_features).uniform_(-bound, bound))

    def forward(self, x: th.Tensor, members: th.Tensor | None = None) -> th.Tensor:
        """``(n_members, batch, in_features) -> (n_members, batch, out_features)``"""
        return th.baddbmm(_member_weights(self.bias, members), x, _member_weights(self.weight, members))


class EnsembleLayerNorm(nn.Module):
    """
    ``n_members`` layer normalisations (Ba et al. 2016, https://arxiv.org/abs/1607.06450) with weights of their own.

    :param n_members: Number of members in the stack.
    :param features: Size of a row, over which mean and variance are taken.
    """

    def __init__(self, n_members: int, features: int):
        super().__init__()
        self.weight = nn.Parameter(th.ones(n_members, 1, features))
        self.bias = nn.Parameter(th.zeros(n_members, 1, features))

    def forward(self, x: th.Tensor, members: th.Tensor | None = None) -> th.Tensor:
        """``(n_members, batch, features) -> (n_members, batch, features)``"""
        normed = nn.functional.layer_norm(x, x.shape[-1:])
        return th.addcmul(_member_weights(self.bias, members), normed, _member_weights(self.weight, members))


class EnsembleMLP(nn.Module):
    """
    ``n_members`` perceptrons of one shape: linear, dropout, layer norm, activation (DroQ's order) a hidden layer,
    and a linear head with one output.

    :param n_members: Number of perceptrons.
    :param in_features: Size of an input row.
    :param net_arch: Sizes of the hidden layers.
    :param activation_fn: Activation after each hidden layer.
    :param layer_norm: Normalise each hidden layer before its activation.
    :param dropout: Probability in [0, 1) of zeroing a hidden unit in training mode.
    """

    def __init__(
        self,
        n_members: int,
        in_features: int,
        net_arch: list[int],
        activation_fn: type[nn.Module] = nn.ReLU,
        layer_norm: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        sizes = [in_features, *net_arch]
        self.hidden = nn.ModuleList(EnsembleLinear(n_members, i, o) for i, o in pairwise(sizes))
        self.norms = nn.ModuleList(EnsembleLayerNorm(n_members, size) for size in net_arch if layer_norm)
        self.dropout = nn.Dropout(dropout) if dropout > 0 else None
        self.activation = activation_fn()
        self.head = EnsembleLinear(n_members, sizes[-1], 1)

    def forward(self, x: th.Tensor, members: th.Tensor | None = None) -> th.Tensor:
        """
        :param x: shape ``(batch, in_features)``, the same rows for every member
        :param members: int64 indices of the members to evaluate, shape ``(k,)``; None for all
        :return: shape ``(n_members or k, batch, 1)``
        """
        n = self.head.weight.shape[0] if members is None else members.shape[0]
        x = x.expand(n, *x.shape)
        for i, linear in enumerate(self.hidden):
            x = linear(x, members)
            if self.dropout is not None:
                x = self.dropout(x)
            if len(self.norms) > 0:
                x = self.norms[i](x, members)
            x = self.activation(x)
        return self.head(x, members)


class EnsembleCritic(BaseModel):
    """
    Q-value networks as one batched ensemble: :class:`stable_baselines3.common.policies.ContinuousCritic` for many
    critics.

    :param observation_space: Observation space.
    :param action_space: Action space.
    :param net_arch: Sizes of the hidden layers of each critic.
    :param features_extractor: Network that turns observations into features, one for the whole ensemble.
    :param features_dim: Number of features.
    :param activation_fn: Activation after each hidden layer.
    :param normalize_images: Divide images by 255.
    :param n_critics: Number of critics in the ensemble.
    :param share_features_extractor: The features extractor is the actor's, trained by the actor's loss alone.
    :param layer_norm: Layer normalisation before each activation.
    :param dropout: Dropout probability in [0, 1) before each normalisation.
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
        n_critics: int = 10,
        share_features_extractor: bool = False,
        layer_norm: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__(
            observation_space,
            action_space,
            features_extractor=features_extractor,
            normalize_images=normalize_images,
        )
        self.n_critics = n_critics
        self.share_features_extractor = share_features_extractor
        self.q_networks = EnsembleMLP(
            n_critics, features_dim + get_action_dim(action_space), net_arch, activation_fn, layer_norm, dropout
        )

    def forward(self, obs: PyTorchObs, actions: th.Tensor, members: th.Tensor | None = None) -> th.Tensor:
        """
        :param obs: observations, ``(batch, ...)``
        :param actions: actions scaled to [-1, 1], ``(batch, action_dim)``
        :param members: int64 indices of the critics to evaluate, shape ``(k,)``; None for all
        :return: Q-values, shape ``(n_critics or k, batch, 1)``
        """
        # As in SB3: a shared features extractor learns from the actor's loss only
        with th.set_grad_enabled(th.is_grad_enabled() and not self.share_features_extractor):
            assert isinstance(self.features_extractor, BaseFeaturesExtractor)
            features = self.extract_features(obs, self.features_extractor)
        return self.q_networks(th.cat([features, actions], dim=1), members)


def draw_members(n_draws: int, n_members: int, n_drawn: int, device: th.device) -> list[th.Tensor | None]:
    """
    Random subsets of an ensemble, each without replacement and uniform over all subsets.

    :param n_draws: number of subsets
    :param n_members: size of the ensemble
    :param n_drawn: size of each subset
    :param device: where the indices are needed
    :return: ``n_draws`` tensors of int64 indices, shape ``(n_drawn,)``; None each where the subset is everything
    """
    if n_drawn == n_members:
        return [None] * n_draws
    return list(th.rand(n_draws, n_members, device=device).argsort(dim=1)[:, :n_drawn])
