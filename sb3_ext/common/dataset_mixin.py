"""A dataset beside the replay buffer of an off-policy algorithm."""

from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.buffers import NStepReplayBuffer

from sb3_ext.common.buffers import DatasetBuffer, Samples, TensorReplayBuffer
from sb3_ext.common.off_policy import OffPolicyMixin, map_samples
from sb3_ext.common.standardize import set_statistics, with_standardizing_extractor
from sb3_ext.datasets.dataset import Dataset
from sb3_ext.datasets.vec_env import as_model_sees


class DatasetMixin(OffPolicyMixin):
    """
    Gives an off-policy algorithm a second, read-only buffer with a dataset in it, and batches that mix both.

    The class that uses it sets ``standardize_observations`` in its constructor, before ``_setup_model``, and calls
    ``_attach`` with the dataset after it. The dataset is no part of the replay buffer: nothing overwrites it.
    """

    standardize_observations: bool
    dataset_buffer: DatasetBuffer | None = None
    # Saved with the model
    _has_statistics = False
    dataset_metadata: dict[str, Any] | None = None

    def _setup_model(self) -> None:
        if self.standardize_observations:
            self.policy_kwargs = with_standardizing_extractor(self.policy_kwargs, self.observation_space)
        super()._setup_model()

    def _attach(self, dataset: Dataset) -> None:
        """
        Check a dataset against the spaces, take its statistics, and put it where batches are drawn from.

        :raises DatasetError: it is of another environment.
        """
        dataset = as_model_sees(dataset, self.env, self.observation_space, self.action_space)
        self.dataset_buffer = self._make_dataset_buffer(dataset)
        self.dataset_metadata = dataset.metadata.to_dict()
        if self.standardize_observations and not self._has_statistics:
            observations = dataset.observations
            assert isinstance(observations, np.ndarray)
            set_statistics(self.policy, observations)
            self._has_statistics = True

    def _make_dataset_buffer(self, dataset: Dataset) -> DatasetBuffer:
        kwargs: dict[str, Any] = {}
        if self.replay_buffer is None or isinstance(self.replay_buffer, (TensorReplayBuffer, NStepReplayBuffer)):
            # Both halves of a batch have returns of the same length
            source = self if self.replay_buffer is None else self.replay_buffer
            kwargs = {"n_steps": source.n_steps, "gamma": source.gamma}
        elif self.n_steps > 1:
            raise ValueError(
                f"n_steps={self.n_steps} with a dataset needs TensorReplayBuffer or SB3's NStepReplayBuffer, not "
                f"{self.replay_buffer_class}: leave replay_buffer_class out, or set n_steps=1."
            )
        return DatasetBuffer(
            dataset, self.observation_space, self.action_space, device=self.device, **kwargs, **self.buffer_extras
        )

    def _initialise_normalization(self) -> None:
        """A young ``VecNormalize`` takes up the dataset's statistics, so that the first updates see their scale."""
        if self._vec_normalize_env is not None:
            assert self.dataset_buffer is not None
            self.dataset_buffer.init_statistics(self._vec_normalize_env)

    def _sample_mixed_batches(self, n_batches: int, batch_size: int, share: float) -> Samples:
        """
        Batches of which a share comes from the dataset, in one gather from each buffer.

        :return: tensors of shape ``(n_batches, batch_size, ...)``
        """
        n_from_dataset = round(share * batch_size)
        parts = []
        for buffer, size in (
            (self.replay_buffer, batch_size - n_from_dataset),
            (self.dataset_buffer, n_from_dataset),
        ):
            if size > 0:
                assert buffer is not None
                parts.append(self._sample_batches(buffer, n_batches, size))
        if len(parts) == 1:
            return parts[0]
        if any(part.discounts is not None for part in parts):
            # One-step returns have none, but in SB3's NStepReplayBuffer
            parts = [
                part if part.discounts is not None else part._replace(discounts=th.full_like(part.rewards, self.gamma))
                for part in parts
            ]
        return map_samples(lambda *xs: th.cat(xs, dim=1), *parts)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "dataset_buffer"]
