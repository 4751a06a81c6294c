"""What the offline algorithms with critics share: targets, the Bellman loss, optimizers, delayed actors."""

from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.policies import BasePolicy

from sb3_ext.common.buffers import Samples
from sb3_ext.common.ensemble import EnsembleCritic
from sb3_ext.common.losses import ensemble_mse, td_target
from sb3_ext.common.offline_algorithm import OfflineAlgorithm
from sb3_ext.common.schedules import as_schedule

Scalars = dict[str, th.Tensor]


class OfflineActorCritic(OfflineAlgorithm):
    """Base class of algorithms with ``actor``, ``critic`` (an ensemble) and ``critic_target``."""

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {}
    # Arguments that hold on to the data's actions and may follow a schedule; updates read `self._bc_coefs`
    bc_coef_names: ClassVar[tuple[str, ...]] = ()
    actor: Any
    critic: EnsembleCritic
    critic_target: EnsembleCritic

    def _check_arguments(self) -> None:
        super()._check_arguments()
        for name in self.bc_coef_names:
            as_schedule(getattr(self, name), name)

    def _setup_model(self) -> None:
        super()._setup_model()
        # Tensors, since an update that is compiled has numbers as constants
        self._bc_coefs = {
            name: th.tensor(value, device=self.device) for name, value in self._current_bc_coefs().items()
        }

    def _current_bc_coefs(self) -> dict[str, float]:
        progress = self._current_progress_remaining
        coefs = {name: as_schedule(getattr(self, name), name)(progress) for name in self.bc_coef_names}
        for name, value in coefs.items():
            if not value >= 0:
                raise ValueError(f"{name} is {value} with {progress:.2f} of `learn` left: it must not be negative.")
        return coefs

    def _update_schedules(self) -> None:
        super()._update_schedules()
        for name, value in self._current_bc_coefs().items():
            self._bc_coefs[name].fill_(value)
            self.logger.record(f"train/{name}", value)

    def _bellman_loss(self, batch: Samples, q_values: th.Tensor, next_values: th.Tensor) -> tuple[th.Tensor, Scalars]:
        """
        :param q_values: of the batch's actions, ``(n_critics, batch, 1)``
        :param next_values: ``(batch, 1)``, without a gradient
        """
        loss = ensemble_mse(q_values, td_target(batch.rewards, batch.dones, self._discounts(batch), next_values))
        return loss, {"critic_loss": loss.detach(), "q_mean": q_values.detach().mean()}

    def _optimizers(self) -> list[th.optim.Optimizer]:
        return [self.actor.optimizer, self.critic.optimizer]

    def _update_constants(self) -> tuple[Any, ...]:
        return self.gamma, self.tau

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_bc_coefs"]
