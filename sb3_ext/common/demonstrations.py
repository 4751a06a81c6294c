"""Demonstrations beside the replay buffer of an off-policy algorithm."""

import os

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import MaybeCallback

from sb3_ext.common.dataset_mixin import DatasetMixin
from sb3_ext.datasets.errors import DatasetError
from sb3_ext.datasets.load import DatasetLike, load_demonstrations
from sb3_ext.datasets.vec_env import check_transforms, env_spec


class DemonstrationsMixin(DatasetMixin):
    """
    An off-policy algorithm with an argument ``demos``.

    The class that uses it sets ``demos``, ``demo_ratio`` and ``standardize_observations`` in its constructor, before
    ``_setup_model``, and calls ``_load_demos`` after it.
    """

    demos: DatasetLike | None
    demo_ratio: float

    def _demo_uses(self) -> dict[str, float]:
        """Arguments that use demonstrations, with their values; 0 is no use."""
        return {"demo_ratio": self.demo_ratio, "standardize_observations": self.standardize_observations}

    def _demo_needs(self) -> dict[str, float]:
        """Those of the uses for which there is something left to do."""
        needs_statistics = self.standardize_observations and not self._has_statistics
        return {**self._demo_uses(), "standardize_observations": needs_statistics}

    def _setup_model(self) -> None:
        if not 0 <= self.demo_ratio <= 1:
            raise ValueError(f"demo_ratio={self.demo_ratio} is a share of each batch and must be in [0, 1].")
        super()._setup_model()

    def _load_demos(self) -> None:
        """
        Read the demonstrations, check them against the spaces and put them on the algorithm's scale.

        :raises DatasetError: they are missing, broken or of another environment.
        :raises ValueError: demonstrations without a use, or a use without demonstrations.
        """
        uses, needs = self._demo_uses(), self._demo_needs()
        if self.demos is None:
            if any(needs.values()):
                raise ValueError(f"{_assignments(needs)} need demonstrations: pass demos=... or set them to 0.")
            return
        if not any(uses.values()):
            raise ValueError(f"demos are given, but {_assignments(uses, all_values=True)} leave them unused: set one.")
        if self.demo_ratio > 0 and round(self.demo_ratio * self.batch_size) == 0:
            raise ValueError(
                f"demo_ratio={self.demo_ratio} of batch_size={self.batch_size} rows is less than one row: raise either."
            )
        assert self.env is not None
        dataset = load_demonstrations(self.demos, env_spec(self.env), self.seed)
        check_transforms(dataset.metadata, self.env)
        self._attach(dataset)

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        is_unused = self.demos is not None and not any(self._demo_uses().values())
        if self.env is not None and self.dataset_buffer is None and (is_unused or any(self._demo_needs().values())):
            self._reload_demos()
        if self.dataset_buffer is not None:
            self._initialise_normalization()
        return super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)

    def _reload_demos(self) -> None:
        """Demonstrations of a loaded model: from their saved name, or as given to ``load``."""
        name = type(self).__name__
        needs = {key: value for key, value in self._demo_needs().items() if value}
        if self.demos is None:
            raise DatasetError(
                f"This model was trained with demonstrations ({_assignments(needs)}) that were in memory, and they are "
                f"gone. Pass them again, {name}.load(path, env=env, demos=...), or train on without: "
                f"{name}.load(path, env=env, {', '.join(f'{key}=0' for key in needs)})."
            )
        try:
            self._load_demos()
        except DatasetError as error:
            raise DatasetError(
                f"{error} This model was trained with demonstrations ({_assignments(needs)}). Pass others, "
                f"{name}.load(path, env=env, demos=...), or train on without: "
                f"{name}.load(path, env=env, demos=None, {', '.join(f'{key}=0' for key in needs)})."
            ) from error

    def _excluded_save_params(self) -> list[str]:
        excluded = super()._excluded_save_params()
        # A name finds its data again; arrays would end up in the zip
        return excluded if isinstance(self.demos, (str, os.PathLike)) else [*excluded, "demos"]


def _assignments(values: dict[str, float], all_values: bool = False) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items() if value or all_values)
