"""EDAC: an ensemble of critics whose gradients disagree."""

from typing import Any

import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv

from sb3_ext.common.buffers import Samples
from sb3_ext.common.entropy_regularized import EntropyRegularizedAlgorithm
from sb3_ext.common.losses import gradient_similarity
from sb3_ext.common.offline_actor_critic import Scalars
from sb3_ext.datasets.load import DatasetLike


class EDAC(EntropyRegularizedAlgorithm):
    r"""
    Ensemble-diversified actor-critic (An et al. 2021, https://arxiv.org/abs/2110.01548): SAC whose target is the least
    of N critics, which are kept from agreeing on actions outside the data.

    .. math::
        L_Q = \tfrac{1}{2} \sum_k \mathrm{mean}\, (Q_k(s, a) - y)^2 + \tfrac{\eta}{2} \frac{1}{N - 1}
            \mathrm{mean} \sum_{i \ne j} \cos(\nabla_a Q_i(s, a), \nabla_a Q_j(s, a))

    With ``eta=0`` it is SAC-N. Both terms have half the weight that they have in the authors' code, so that their
    values of :math:`\eta` apply.

    :param policy: see :class:`~sb3_ext.common.offline_algorithm.OfflineAlgorithm`, as all further arguments
    :param env: Environment for online training, or None.
    :param dataset: Whatever :func:`sb3_ext.datasets.load` takes.
    :param eta: Weight of the similarity, at least 0.
    :param n_critics: Number of critics, at least 2 unless ``eta=0``.
    :param kwargs: Arguments of :class:`~sb3_ext.common.entropy_regularized.EntropyRegularizedAlgorithm`, of
        :class:`~sb3_ext.common.offline_actor_critic.OfflineActorCritic` and of
        :class:`~sb3_ext.common.offline_algorithm.OfflineAlgorithm`.
    """

    def __init__(
        self,
        policy: str | type[BasePolicy],
        env: GymEnv | str | None = None,
        dataset: DatasetLike | None = None,
        *,
        eta: float = 1.0,
        n_critics: int = 10,
        **kwargs: Any,
    ):
        self.eta = eta
        super().__init__(policy, env, dataset, n_critics=n_critics, **kwargs)

    def _check_arguments(self) -> None:
        super()._check_arguments()
        if not self.eta >= 0:
            raise ValueError(f"eta={self.eta} must be at least 0.")
        if self.eta > 0 and self.n_critics < 2:
            raise ValueError(f"n_critics={self.n_critics}: one critic agrees with itself; use 2 or more, or eta=0.")

    def _penalty(self, batch: Samples, q_values: th.Tensor, noise: th.Tensor) -> tuple[th.Tensor, Scalars]:
        metrics = {"q_std": q_values.detach().std(dim=0).mean()} if self.n_critics > 1 else {}
        if self.eta == 0:
            return th.zeros((), device=q_values.device), metrics
        # A copy for each critic, so that each has its own gradient
        actions = batch.actions.expand(self.n_critics, *batch.actions.shape).clone().requires_grad_(True)
        values = self.critic.each(batch.observations, actions)
        (gradients,) = th.autograd.grad(values.sum(), actions, create_graph=True)
        similarity = gradient_similarity(gradients)
        return 0.5 * self.eta * similarity, {**metrics, "gradient_similarity": similarity.detach() / self.n_critics}

    def _update_constants(self) -> tuple[Any, ...]:
        return (*super()._update_constants(), self.eta)
