"""REDQ's policies with the actor of DrQ-v2; those with SAC's are in ``sb3_ext.common.policies``."""

from typing import Any

from sb3_ext.common.actors import TruncatedNormalActor
from sb3_ext.common.policies import CnnMixin, EnsemblePolicy, MultiInputMixin


class TruncatedNormalPolicy(EnsemblePolicy):
    """
    The truncated-normal actor of fixed standard deviation. All arguments of
    :class:`~sb3_ext.common.policies.EnsemblePolicy`, and:

    :param action_std: Standard deviation of the actions, positive; the actions' range is [-1, 1].
    :param noise_clip: Largest noise in the losses, positive.
    """

    actor_class = TruncatedNormalActor

    def __init__(self, *args: Any, action_std: float = 0.1, noise_clip: float = 0.3, **kwargs: Any):
        self._actor_kwargs = {"action_std": action_std, "noise_clip": noise_clip}
        super().__init__(*args, **kwargs)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), **self._actor_kwargs}


class TruncatedNormalCnnPolicy(CnnMixin, TruncatedNormalPolicy):
    """:class:`TruncatedNormalPolicy` for images."""


class TruncatedNormalMultiInputPolicy(MultiInputMixin, TruncatedNormalPolicy):
    """:class:`TruncatedNormalPolicy` for Dict observations."""
