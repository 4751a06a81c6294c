"""Action distributions that SB3 does not have."""

import math

import torch as th

# Uniform numbers stay inside (0, 1) by this much, so that their logarithms are finite
UNIFORM_EPSILON = 1e-7
HALF_LOG_2_PI = 0.5 * math.log(2 * math.pi)
# As in SB3's TanhBijector: keeps the logarithm finite where tanh is 1 in float32
TANH_EPSILON = 1e-6


class SquashedNormal:
    """
    Diagonal normal distribution squashed by tanh into (-1, 1): SB3's ``SquashedDiagGaussianDistribution`` as plain
    tensor functions, with the noise as an argument, so that a compiler or a CUDA graph can take it.

    :param loc: Mean before the tanh, shape ``(..., action_dim)``.
    :param log_scale: Logarithm of the standard deviation, of that shape.
    """

    def __init__(self, loc: th.Tensor, log_scale: th.Tensor):
        self.loc = loc
        self.log_scale = log_scale

    @property
    def mode(self) -> th.Tensor:
        """The squashed mean, shape ``(..., action_dim)``."""
        return th.tanh(self.loc)

    def rsample(self, noise: th.Tensor | None = None) -> th.Tensor:
        """
        Sample with gradients to both parameters.

        :param noise: Standard normal noise of ``loc``'s shape; drawn here if None.
        :return: shape ``(..., action_dim)``
        """
        noise = th.randn_like(self.loc) if noise is None else noise
        return th.tanh(self.loc + self.log_scale.exp() * noise)

    def rsample_log_prob(self, noise: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        :param noise: standard normal noise of ``loc``'s shape
        :return: a sample, ``(..., action_dim)``, and its log-density, ``(...,)``
        """
        actions = self.rsample(noise)
        return actions, self._log_prob(noise, actions)

    def log_prob(self, actions: th.Tensor) -> th.Tensor:
        """
        :param actions: shape ``(..., action_dim)``, inside (-1, 1)
        :return: log-density summed over action dimensions, shape ``(...,)``
        """
        return self._log_prob((th.atanh(actions) - self.loc) * (-self.log_scale).exp(), actions)

    def _log_prob(self, z: th.Tensor, actions: th.Tensor) -> th.Tensor:
        gaussian = -0.5 * z.square() - self.log_scale - HALF_LOG_2_PI
        return (gaussian - th.log(1 - actions.square() + TANH_EPSILON)).sum(-1)


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
        return (-0.5 * z.square() - math.log(self.scale) - HALF_LOG_2_PI).sum(-1)


class ClampedNormal:
    """
    Diagonal normal distribution whose samples are clamped into [-1, 1]. ``log_prob`` is the log-density of the normal
    before clamping, so an action at exactly -1 or 1 is an ordinary point with a finite value and gradient.

    :param loc: Mean in [-1, 1], shape ``(..., action_dim)``.
    :param log_scale: Logarithm of the standard deviation, a shape that broadcasts to ``loc``'s.
    """

    def __init__(self, loc: th.Tensor, log_scale: th.Tensor):
        self.loc = loc
        self.log_scale = log_scale

    @property
    def mode(self) -> th.Tensor:
        """Most probable action, shape ``(..., action_dim)``."""
        return self.loc

    def rsample(self, noise: th.Tensor | None = None, clamps: bool = True) -> th.Tensor:
        """
        :param noise: Standard normal noise of ``loc``'s shape; drawn here if None.
        :param clamps: False gives the sample of the normal itself, whose log-density ``log_prob`` is.
        :return: shape ``(..., action_dim)``, in [-1, 1]
        """
        noise = th.randn_like(self.loc) if noise is None else noise
        samples = self.loc + self.log_scale.exp() * noise
        return samples.clamp(-1, 1) if clamps else samples

    def log_prob(self, actions: th.Tensor) -> th.Tensor:
        """
        :param actions: shape ``(..., action_dim)``, in [-1, 1]
        :return: log-density summed over action dimensions, shape ``(...,)``
        """
        z = (actions - self.loc) * (-self.log_scale).exp()
        return (-0.5 * z.square() - self.log_scale - HALF_LOG_2_PI).sum(-1)


class OneHotCategorical:
    """
    Categorical distribution over one-hot vectors, with the noise of samples as an argument like the others here.

    :param logits: Unnormalised log-probabilities, shape ``(..., n_actions)``.
    """

    def __init__(self, logits: th.Tensor):
        self.log_probs = th.log_softmax(logits, dim=-1)

    @property
    def mode(self) -> th.Tensor:
        """The most probable vector, shape ``(..., n_actions)``."""
        return self._one_hot(self.log_probs)

    def rsample(self, noise: th.Tensor | None = None) -> th.Tensor:
        """
        Sample by the greatest of the log-probabilities plus Gumbel noise; it has no gradient.

        :param noise: Standard normal noise of the logits' shape; drawn here if None.
        :return: shape ``(..., n_actions)``
        """
        noise = th.randn_like(self.log_probs) if noise is None else noise
        # Normal -> uniform -> Gumbel
        uniform = (0.5 + 0.5 * th.erf(noise / math.sqrt(2))).clamp(UNIFORM_EPSILON, 1 - UNIFORM_EPSILON)
        return self._one_hot(self.log_probs - th.log(-th.log(uniform)))

    def log_prob(self, actions: th.Tensor) -> th.Tensor:
        """
        :param actions: one-hot, shape ``(..., n_actions)``
        :return: shape ``(...,)``
        """
        return (self.log_probs * actions).sum(-1)

    def _one_hot(self, scores: th.Tensor) -> th.Tensor:
        # Not `one_hot`, which looks at the values and so cannot be recorded
        return th.zeros_like(scores).scatter(-1, scores.argmax(dim=-1, keepdim=True), 1.0)
