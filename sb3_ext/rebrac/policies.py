"""Policies for ReBRAC: a deterministic actor with a target, and critics with layer normalisation."""

from typing import Any

from stable_baselines3.common.type_aliases import Schedule

from sb3_ext.common import hierarchical_policy
from sb3_ext.common.actors import DeterministicActor
from sb3_ext.common.offline_policies import TwoCriticsPolicy
from sb3_ext.common.policies import CnnMixin, MultiInputMixin


class ReBRACPolicy(TwoCriticsPolicy):
    """
    A :class:`DeterministicActor`, its target, and two critics. Arguments are those of
    :class:`~sb3_ext.common.policies.EnsemblePolicy`, with the paper's defaults: ``n_critics=2``, ``layer_norm=True``
    and three hidden layers of 256.
    """

    actor: DeterministicActor  # type: ignore[assignment]
    actor_target: DeterministicActor
    actor_class = DeterministicActor

    def __init__(self, *args: Any, **kwargs: Any):
        if len(args) < 4 and kwargs.get("net_arch") is None:
            kwargs["net_arch"] = [256, 256, 256]
        super().__init__(*args, **{"layer_norm": True, **kwargs})

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        self.actor_target = self.make_actor(None)
        self.actor_target.load_state_dict(self.actor.state_dict())
        self.actor_target.set_training_mode(False)


class CnnPolicy(CnnMixin, ReBRACPolicy):
    """:class:`ReBRACPolicy` for images."""


class MultiInputPolicy(MultiInputMixin, ReBRACPolicy):
    """:class:`ReBRACPolicy` for Dict observations."""


class HierarchicalPolicy(hierarchical_policy.HierarchicalPolicy):
    """:class:`~sb3_ext.common.hierarchical_policy.HierarchicalPolicy` with a :class:`ReBRACPolicy`."""

    high_level_class = ReBRACPolicy


MlpPolicy = ReBRACPolicy
