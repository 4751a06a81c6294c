"""Actions as networks see them: Box actions scaled to [-1, 1], discrete ones as one-hot vectors."""

import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_action_dim


def action_size(space: spaces.Space) -> int:
    """Entries of an action as networks see it: those of a Box, the number of discrete actions."""
    return int(space.n) if isinstance(space, spaces.Discrete) else get_action_dim(space)


def encode_actions(actions: th.Tensor, space: spaces.Space) -> th.Tensor:
    """
    :param actions: as a replay buffer has them, ``(..., action_dim)``
    :param space: their space
    :return: as networks see them, ``(..., action_size(space))``
    """
    if not isinstance(space, spaces.Discrete):
        return actions
    return th.nn.functional.one_hot(actions.squeeze(-1).long(), int(space.n)).float()
