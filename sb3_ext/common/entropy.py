"""SAC's entropy coefficient, as REDQ has it from SB3 and the offline algorithms set it up themselves."""

from typing import Any

import torch as th


class EntropyCoefficientMixin:
    """
    For algorithms with SAC's attributes: ``log_ent_coef`` and ``ent_coef_optimizer``, both None where the coefficient
    is constant and is ``ent_coef_tensor``, and ``target_entropy``.
    """

    log_ent_coef: th.Tensor | None
    ent_coef_tensor: th.Tensor
    ent_coef_optimizer: th.optim.Adam | None
    target_entropy: Any

    def _ent_coef(self) -> th.Tensor:
        return self.ent_coef_tensor if self.log_ent_coef is None else self.log_ent_coef.detach().exp()

    def _ent_coef_loss(self, log_prob: th.Tensor) -> th.Tensor | None:
        """
        :param log_prob: of the policy's actions, ``(batch, 1)``
        :return: scalar; None where the coefficient is constant
        """
        if self.log_ent_coef is None:
            return None
        return -(self.log_ent_coef * (log_prob + self.target_entropy).detach()).mean()

    def _ent_coef_optimizers(self) -> list[th.optim.Optimizer]:
        return [] if self.ent_coef_optimizer is None else [self.ent_coef_optimizer]

    def _ent_coef_constants(self) -> tuple[Any, ...]:
        """What a compiled update has to be compiled again for."""
        return self.target_entropy, None if self.log_ent_coef is not None else id(self.ent_coef_tensor)
