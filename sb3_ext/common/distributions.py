"""Action distributions that SB3 does not have."""

import math

import torch as th


class TruncatedNormal:
    """
    Normal distribution on [-1, 1] whose samples are clamped into the interval, with gradients that pass through the
    clamp, as in DrQ-v2 (Yarats et al. 2021, https://arxiv.org/abs/2107.09645).

    ``log_prob`` is the log-density of the normal before clamping, so an action at exactly -1 or 1 is an ordinary point
    with a finite value and gradient.

    :param loc: Mean in [-1, 1], shape ``(..., action_dim)``.
    :param scale: Standard deviation, positive.
    """

    # Samples stay off the borders by this much, so that a critic's input is never exactly saturated
    eps = 1e-6

    def __init__(self, loc: th.Tensor, scale: float):
        self.loc = loc
        self.scale = scale

    @property
    def mode(self) -> th.Tensor:
        """Most probable action, shape ``(..., action_dim)``."""
        return self.loc

    def rsample(self, noise: th.Tensor | None = None, noise_clip: float | None = None) -> th.Tensor:
        """
        Sample with a gradient to ``loc``.

        :param noise: Standard normal noise of ``loc``'s shape; drawn here if None.
        :param noise_clip: Clip the scaled noise to ``[-noise_clip, noise_clip]`` (TD3's target smoothing).
        :return: shape ``(..., action_dim)``, inside (-1, 1)
        """
        noise = th.randn_like(self.loc) if noise is None else noise
        shift = self.scale * noise
        if noise_clip is not None:
            shift = shift.clamp(-noise_clip, noise_clip)
        action = self.loc + shift
        clamped = action.clamp(-1 + self.eps, 1 - self.eps)
        # Straight-through: the value of the clamp with the gradient of the identity
        return action + (clamped - action).detach()

    def log_prob(self, actions: th.Tensor) -> th.Tensor:
        """
        :param actions: shape ``(..., action_dim)``, in [-1, 1]
        :return: log-density summed over action dimensions, shape ``(...,)``
        """
        z = (actions - self.loc) / self.scale
        return (-0.5 * z.square() - math.log(self.scale) - 0.5 * math.log(2 * math.pi)).sum(-1)
