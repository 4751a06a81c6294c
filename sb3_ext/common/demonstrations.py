"""Demonstrations beside the replay buffer of an off-policy algorithm."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import VecTransposeImage, unwrap_vec_wrapper

from sb3_ext.common.buffers import DatasetBuffer, Samples, TensorReplayBuffer
from sb3_ext.common.off_policy import OffPolicyMixin, map_samples
from sb3_ext.common.standardize import StandardizingExtractor, set_statistics
from sb3_ext.datasets.checks import check_spaces
from sb3_ext.datasets.dataset import Dataset, map_observations
from sb3_ext.datasets.errors import DatasetError
from sb3_ext.datasets.load import DatasetLike, load_demonstrations


class DemonstrationsMixin(OffPolicyMixin):
    """
    Gives an off-policy algorithm a second, read-only buffer of demonstrations and batches that mix both.

    The class that uses it sets ``demos``, ``demo_ratio`` and ``standardize_observations`` in its constructor, before
    ``_setup_model``, and calls ``_load_demos`` after it. Demonstrations are no part of the replay buffer: nothing
    overwrites them.
    """

    demos: DatasetLike | None
    demo_ratio: float
    standardize_observations: bool
    demo_buffer: DatasetBuffer | None = None
    # Saved with the model
    _has_statistics = False
    demo_metadata: dict[str, Any] | None = None

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
        if self.standardize_observations:
            self._use_standardizing_extractor()
        super()._setup_model()

    def _use_standardizing_extractor(self) -> None:
        if not isinstance(self.observation_space, spaces.Box) or is_image_space(self.observation_space):
            raise ValueError(
                f"standardize_observations works on vectors, not on {self.observation_space}. "
                "Wrap the environment in VecNormalize instead."
            )
        extractor = self.policy_kwargs.get("features_extractor_class", StandardizingExtractor)
        if extractor is not StandardizingExtractor:
            raise ValueError(f"standardize_observations and the features extractor {extractor} exclude each other.")
        self.policy_kwargs = {**self.policy_kwargs, "features_extractor_class": StandardizingExtractor}

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
        dataset = load_demonstrations(self.demos, self._env_spec(), self.seed)
        self._check_transforms(dataset)
        dataset = self._transpose_images(dataset)
        check_spaces(dataset, self.observation_space, self.action_space)
        self.demo_buffer = self._make_demo_buffer(dataset)
        self.demo_metadata = dataset.metadata.to_dict()
        if self.standardize_observations and not self._has_statistics:
            observations = dataset.observations
            assert isinstance(observations, np.ndarray)
            set_statistics(self.policy, observations)
            self._has_statistics = True

    def _check_transforms(self, dataset: Dataset) -> None:
        """Both halves of a batch need the same rewards and observations."""
        assert self.env is not None
        needed = [transform.name for transform in dataset.metadata.transforms if transform.changes_env]
        has = self.env.get_attr("dataset_transforms")[0] if self.env.has_attr("dataset_transforms") else []
        missing = [name for name in needed if name not in has]
        if missing:
            raise DatasetError(
                f"{dataset.source} went through {missing}, the environment did not: use the raw data "
                "(standardize_observations=True standardises both), or train in "
                "sb3_ext.datasets.make_training_env(dataset)."
            )

    def _transpose_images(self, dataset: Dataset) -> Dataset:
        """Demonstrations hold images as the environment gives them; SB3 may have put their channels first."""
        assert self.env is not None
        wrapper = unwrap_vec_wrapper(self.env, VecTransposeImage)
        if wrapper is None:
            return dataset
        check_spaces(dataset, wrapper.venv.observation_space, self.action_space)
        return replace(dataset, frames=wrapper.transpose_observations(dataset.frames))  # type: ignore[arg-type]

    def _env_spec(self) -> EnvSpec | None:
        """How to make the training environment once more; None if it was not made by ``gym.make``."""
        assert self.env is not None
        spec = self.env.get_attr("spec")[0] if self.env.has_attr("spec") else None
        if spec is None:
            return None
        # SB3's Monitor adds itself to the spec, but cannot be made from it, and changes nothing
        wrappers = tuple(wrapper for wrapper in spec.additional_wrappers if wrapper.name != "Monitor")
        return replace(spec, additional_wrappers=wrappers)

    def _make_demo_buffer(self, dataset: Dataset) -> DatasetBuffer:
        kwargs: dict[str, Any] = {}
        if isinstance(self.replay_buffer, (TensorReplayBuffer, NStepReplayBuffer)):
            # Both halves of a batch have returns of the same length
            kwargs = {"n_steps": self.replay_buffer.n_steps, "gamma": self.replay_buffer.gamma}
        elif self.n_steps > 1:
            raise ValueError(
                f"n_steps={self.n_steps} with demonstrations needs TensorReplayBuffer or SB3's NStepReplayBuffer, not "
                f"{self.replay_buffer_class}: leave replay_buffer_class out, or set n_steps=1."
            )
        return DatasetBuffer(dataset, self.observation_space, self.action_space, device=self.device, **kwargs)

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        is_unused = self.demos is not None and not any(self._demo_uses().values())
        if self.env is not None and self.demo_buffer is None and (is_unused or any(self._demo_needs().values())):
            self._reload_demos()
        if self.demo_buffer is not None:
            self._initialise_normalization(self.demo_buffer)
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

    def _initialise_normalization(self, demo_buffer: DatasetBuffer) -> None:
        """A young ``VecNormalize`` takes up the statistics of the demonstrations, so that cloning sees their scale."""
        vec_normalize = self._vec_normalize_env
        if vec_normalize is None or not vec_normalize.norm_obs or not vec_normalize.training:
            return
        observations = map_observations(lambda column: column.cpu().numpy(), demo_buffer.frames)
        if isinstance(vec_normalize.obs_rms, dict):
            pairs = [(rms, observations[key]) for key, rms in vec_normalize.obs_rms.items()]
        else:
            pairs = [(vec_normalize.obs_rms, observations)]
        for rms, values in pairs:
            if rms.count < len(values):
                rms.update(values)

    def _sample_mixed_batches(self, n_batches: int, batch_size: int) -> Samples:
        """
        Batches of which a share ``demo_ratio`` comes from the demonstrations, in one gather from each buffer.

        :return: tensors of shape ``(n_batches, batch_size, ...)``
        """
        n_demo = round(self.demo_ratio * batch_size)
        parts = []
        for buffer, size in ((self.replay_buffer, batch_size - n_demo), (self.demo_buffer, n_demo)):
            if size > 0:
                assert buffer is not None
                parts.append(self._sample_batches(buffer, n_batches, size))
        return parts[0] if len(parts) == 1 else map_samples(lambda *xs: th.cat(xs, dim=1), *parts)

    def _excluded_save_params(self) -> list[str]:
        excluded = [*super()._excluded_save_params(), "demo_buffer"]
        # A name finds its data again; arrays would end up in the zip
        return excluded if isinstance(self.demos, str) else [*excluded, "demos"]


def _assignments(values: dict[str, float], all_values: bool = False) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items() if value or all_values)
