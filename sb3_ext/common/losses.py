"""Losses as pure functions of tensors; each has a test with values worked out by hand."""

import math

import torch as th

# From here on exp is large, and differences with 1 are no longer rounded away
FAR_LOG_RATIO = 10.0


def td_target(rewards: th.Tensor, dones: th.Tensor, discounts: th.Tensor | float, next_values: th.Tensor) -> th.Tensor:
    r"""
    One-step (or n-step) target :math:`y = r + \gamma (1 - d) V(s')`.

    :param rewards: shape ``(batch, 1)``
    :param dones: 1 where the episode terminated, 0 elsewhere (also at a truncation), shape ``(batch, 1)``
    :param discounts: discount in [0, 1], a number or shape ``(batch, 1)``
    :param next_values: shape ``(batch, 1)``
    :return: shape ``(batch, 1)``
    """
    return rewards + (1 - dones) * discounts * next_values


def ensemble_mse(q_values: th.Tensor, target: th.Tensor) -> th.Tensor:
    r"""
    :math:`\frac{1}{2}\sum_k \mathrm{mean}_b (Q_k(s_b, a_b) - y_b)^2`: each critic has the gradient it would have alone.
    The factor is SAC's in SB3.

    :param q_values: shape ``(n_critics, batch, 1)``
    :param target: shape ``(batch, 1)``
    :return: scalar
    """
    return 0.5 * (q_values - target).square().mean(dim=(1, 2)).sum()


def mean_q_actor_loss(q_values: th.Tensor, log_prob: th.Tensor, ent_coef: th.Tensor | float) -> th.Tensor:
    r"""
    REDQ's policy loss :math:`\mathrm{mean}_b(\alpha \log\pi(a_b|s_b) - \frac{1}{N}\sum_k Q_k(s_b, a_b))`
    (Chen et al. 2021, https://arxiv.org/abs/2101.05982, algorithm 1).

    :param q_values: Q-values of the policy's own actions, shape ``(n_critics, batch, 1)``
    :param log_prob: shape ``(batch, 1)``
    :param ent_coef: entropy coefficient :math:`\alpha \ge 0`
    :return: scalar
    """
    return (ent_coef * log_prob - q_values.mean(dim=0)).mean()


def behaviour_cloning_loss(log_prob: th.Tensor) -> th.Tensor:
    r"""
    :math:`-\mathrm{mean}_b \log\pi(a_b|s_b)` of demonstrated actions.

    :param log_prob: shape ``(batch,)``
    :return: scalar
    """
    return -log_prob.mean()


def expectile_loss(diff: th.Tensor, expectile: float) -> th.Tensor:
    r"""
    :math:`\mathrm{mean}(|\tau - 1_{d < 0}|\, d^2)`: the value that minimises it over targets minus itself is their
    expectile (Kostrikov et al. 2021, https://arxiv.org/abs/2110.06169, equation 5). With ``expectile=0.5`` it is half
    the mean squared error.

    :param diff: targets minus values, any shape
    :param expectile: in (0, 1); above 0.5 values lean to the greater targets
    :return: scalar
    """
    return (th.where(diff < 0, 1 - expectile, expectile) * diff.square()).mean()


def exponential_weights(advantages: th.Tensor, temperature: float, max_weight: float) -> th.Tensor:
    r"""
    :math:`\min(e^{A / \lambda}, w_{max})` (Nair et al. 2020, https://arxiv.org/abs/2006.09359, equation 13).

    :param advantages: shape ``(batch,)``
    :param temperature: :math:`\lambda > 0`; small values keep only the best actions
    :param max_weight: the greatest weight, above 0
    :return: shape ``(batch,)``
    """
    # Before the exponential, so that nothing overflows
    return (advantages / temperature).clamp(max=math.log(max_weight)).exp()


def softmax_weights(advantages: th.Tensor, temperature: float) -> th.Tensor:
    r"""
    :math:`B\, \mathrm{softmax}_b(A_b / \lambda)`: weights with a mean of 1, whatever the level of the advantages.

    :param advantages: shape ``(batch,)``
    :param temperature: :math:`\lambda > 0`
    :return: shape ``(batch,)``
    """
    return len(advantages) * th.softmax(advantages / temperature, dim=0)


def effective_sample_size(weights: th.Tensor) -> th.Tensor:
    r"""
    :math:`(\sum_b w_b)^2 / (B \sum_b w_b^2)` in (0, 1]: the share of a batch that a weighted mean rests on. 0 where all
    weights are.

    :param weights: not negative, shape ``(batch,)``
    :return: scalar
    """
    # Relative to the largest, since squares of small weights, and of large ones, leave the range of float32
    smallest = th.finfo(weights.dtype).tiny
    weights = weights / weights.amax().clamp(min=smallest)
    return weights.sum().square() / (len(weights) * weights.square().sum()).clamp(min=smallest)


def weighted_cloning_loss(log_prob: th.Tensor, weights: th.Tensor) -> th.Tensor:
    r"""
    :math:`-\mathrm{mean}_b(w_b \log\pi(a_b|s_b))`; with weights of 1 it is :func:`behaviour_cloning_loss`.

    :param log_prob: shape ``(batch,)``
    :param weights: shape ``(batch,)``, without a gradient
    :return: scalar
    """
    return -(weights * log_prob).mean()


def cloned_td3_actor_loss(
    q_values: th.Tensor, distances: th.Tensor, bc_coef: float | th.Tensor, normalize_q: bool = True
) -> th.Tensor:
    r"""
    :math:`\mathrm{mean}_b(\beta_1 \|\pi(s_b) - a_b\|^2 - \lambda Q(s_b, \pi(s_b)))` with
    :math:`\lambda = 1 / \mathrm{mean}_b|Q|`, a constant for gradients (Fujimoto & Gu 2021,
    https://arxiv.org/abs/2106.06860, equation 5; Tarasov et al. 2023, https://arxiv.org/abs/2305.09836).

    :param q_values: Q-values of the policy's actions, shape ``(batch, 1)``
    :param distances: squared distances of these actions from the data's, shape ``(batch, 1)``
    :param bc_coef: :math:`\beta_1 \ge 0`, a number or a 0-d tensor
    :param normalize_q: False for :math:`\lambda = 1`
    :return: scalar
    """
    scale = 1 / q_values.detach().abs().mean().clamp(min=1e-6) if normalize_q else 1.0
    return (bc_coef * distances - scale * q_values).mean()


def scaled_cloning_loss(q_values: th.Tensor, distances: th.Tensor, bc_coef: float | th.Tensor) -> th.Tensor:
    r"""
    :math:`\beta\, \mathrm{mean}|Q|\, \mathrm{mean}_b \|\pi(s_b) - a_b\|^2`, to be added to a loss that has Q-values in
    it: :func:`cloned_td3_actor_loss` is the same with everything divided by :math:`\mathrm{mean}|Q|`.

    :param q_values: Q-values of the policy's actions, any shape; a constant for gradients
    :param distances: squared distances of the policy's actions from the data's, shape ``(batch,)``
    :param bc_coef: :math:`\beta \ge 0`, a number or a 0-d tensor
    :return: scalar
    """
    return bc_coef * q_values.detach().abs().mean() * distances.mean()


def conservative_loss(sampled_values: th.Tensor, log_densities: th.Tensor, data_values: th.Tensor) -> th.Tensor:
    r"""
    :math:`\sum_k \mathrm{mean}_b (\log \frac{1}{m} \sum_j e^{Q_k(s_b, a_j)} / p(a_j) - Q_k(s_b, a_b))`: how much the
    values of all actions, by importance sampling, are above those of the data's (Kumar et al. 2020,
    https://arxiv.org/abs/2006.04779, appendix F).

    :param sampled_values: shape ``(n_critics, m, batch)``
    :param log_densities: logarithm of the density that each of these actions was drawn from, shape ``(m, batch)``
    :param data_values: values of the data's actions, shape ``(n_critics, batch)``
    :return: scalar
    """
    above = th.logsumexp(sampled_values - log_densities, dim=1) - math.log(len(log_densities))
    return (above - data_values).mean(dim=1).sum()


def gradient_similarity(gradients: th.Tensor) -> th.Tensor:
    r"""
    :math:`\frac{1}{N - 1} \mathrm{mean}_b \sum_{i \ne j} \cos(g_{ib}, g_{jb})`: N where all critics' gradients point
    the same way, 0 where they are orthogonal (An et al. 2021, https://arxiv.org/abs/2110.01548, equation 4).

    :param gradients: of each critic's values by the actions, shape ``(n_critics, batch, action_dim)``
    :return: scalar
    """
    # The norm has no derivative at 0
    unit = gradients * (gradients.square().sum(dim=2, keepdim=True) + 1e-12).rsqrt()
    together = unit.sum(dim=0).square().sum(dim=1) - unit.square().sum(dim=(0, 2))
    return together.mean() / (len(gradients) - 1)


def large_margin_loss(q_values: th.Tensor, actions: th.Tensor, margin: float) -> th.Tensor:
    r"""
    :math:`\mathrm{mean}_b(\max_a (Q(s_b, a) + m 1_{a \ne a_b}) - Q(s_b, a_b))`: 0 where the demonstrated action's value
    is above all others' by the margin (Hester et al. 2018, https://arxiv.org/abs/1704.03732).

    :param q_values: shape ``(batch, n_actions)``
    :param actions: indices of the demonstrated actions, shape ``(batch, 1)``
    :param margin: :math:`m > 0`
    :return: scalar
    """
    chosen = q_values.gather(1, actions)
    others = th.full_like(q_values, margin).scatter(1, actions, 0.0)
    return ((q_values + others).amax(dim=1, keepdim=True) - chosen).mean()


def clipped_surrogate_loss(ratio: th.Tensor, advantages: th.Tensor, low: th.Tensor, high: th.Tensor) -> th.Tensor:
    r"""
    PPO's :math:`-\mathrm{mean}_b \min(\rho_b A_b, \mathrm{clip}(\rho_b, 1 - \epsilon, 1 + \epsilon) A_b)` (Schulman et
    al. 2017, https://arxiv.org/abs/1707.06347, equation 7).

    :param ratio: :math:`\rho`, the policy's probability of actions over that of the policy that drew them, ``(batch,)``
    :param advantages: :math:`A`, ``(batch,)``
    :param low: :math:`1 - \epsilon`, a 0-d tensor
    :param high: :math:`1 + \epsilon`, a 0-d tensor
    :return: scalar
    """
    return -th.min(advantages * ratio, advantages * th.clamp(ratio, low, high)).mean()


def sampled_reverse_kl(log_ratio: th.Tensor, log_ratio_to_old: th.Tensor) -> th.Tensor:
    r"""
    :math:`\mathrm{mean}_b\, \rho_b \log(\pi(a_b|s_b) / \pi_{ref}(a_b|s_b))` over actions of an older policy, with
    :math:`\rho_b = \pi(a_b|s_b) / \pi_{old}(a_b|s_b)`: an unbiased estimate of :math:`KL(\pi \| \pi_{ref})`, and so is
    its gradient. It may be negative.

    :param log_ratio: :math:`\log \pi / \pi_{ref}` of the actions, shape ``(batch,)``
    :param log_ratio_to_old: :math:`\log \pi / \pi_{old}`, shape ``(batch,)``
    :return: scalar
    """
    return (log_ratio_to_old.exp() * log_ratio).mean()


def k3_reverse_kl(log_ratio: th.Tensor, log_ratio_to_old: th.Tensor) -> th.Tensor:
    r"""
    :math:`\mathrm{mean}_b\, \rho_b (r_b - 1 - \log r_b)` with :math:`r_b = \pi_{ref}(a_b|s_b) / \pi(a_b|s_b)`: as
    :func:`sampled_reverse_kl`, never negative, and with less variance where the policies are near each other (Schulman
    2020, http://joschu.net/blog/kl-approx.html).

    :param log_ratio: :math:`\log \pi / \pi_{ref}` of the actions, shape ``(batch,)``
    :param log_ratio_to_old: :math:`\log \pi / \pi_{old}`, shape ``(batch,)``
    :return: scalar
    """
    # Two forms of the same number: one is exact near 0, the other where r would overflow and rho be 0
    far = log_ratio < -FAR_LOG_RATIO
    near_form = log_ratio_to_old.exp() * (th.expm1(-log_ratio.clamp(min=-FAR_LOG_RATIO)) + log_ratio)
    far_form = (log_ratio_to_old - log_ratio).exp() + log_ratio_to_old.exp() * (log_ratio - 1)
    return th.where(far, far_form, near_form).mean()


def gaussian_kl(mean: th.Tensor, log_std: th.Tensor, ref_mean: th.Tensor, ref_log_std: th.Tensor) -> th.Tensor:
    r"""
    :math:`KL(N(\mu, \sigma) \| N(\mu_r, \sigma_r)) = \sum_i \log\frac{\sigma_{ri}}{\sigma_i} +
    \frac{\sigma_i^2 + (\mu_i - \mu_{ri})^2}{2 \sigma_{ri}^2} - \frac{1}{2}`.

    :param mean: shape ``(batch, dim)``, like all
    :return: shape ``(batch,)``
    """
    ratio = log_std - ref_log_std
    z = (mean - ref_mean) * (-ref_log_std).exp()
    return (0.5 * ((2 * ratio).exp() + z.square() - 1) - ratio).sum(dim=-1)


def categorical_kl(log_probs: th.Tensor, ref_log_probs: th.Tensor) -> th.Tensor:
    r"""
    :math:`\sum_i p_i (\log p_i - \log r_i)`.

    :param log_probs: normalised, shape ``(batch, n)``, like the other
    :return: shape ``(batch,)``
    """
    return (log_probs.exp() * (log_probs - ref_log_probs)).sum(dim=-1)


def bernoulli_kl(logits: th.Tensor, ref_logits: th.Tensor) -> th.Tensor:
    r"""
    :math:`\sum_i p_i \log\frac{p_i}{r_i} + (1 - p_i) \log\frac{1 - p_i}{1 - r_i}` of independent bits.

    :param logits: :math:`\log p / (1 - p)`, shape ``(batch, n)``, like the other
    :return: shape ``(batch,)``
    """
    both, ref = (
        th.stack([th.nn.functional.logsigmoid(x), th.nn.functional.logsigmoid(-x)], -1) for x in (logits, ref_logits)
    )
    return categorical_kl(both, ref).sum(dim=-1)
