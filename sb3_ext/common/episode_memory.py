"""What a hierarchical policy remembers of an episode: where it stopped, and where it found nothing."""

from typing import NamedTuple

import numpy as np
import torch as th
from torch import nn

N_PLACES = 256
# Drawn once: deterministic predictions are the same every time, and nobody's random numbers are used up
N_NOISE = 1024


class EpisodeState(NamedTuple):
    """The ``state`` of ``predict``, for the episodes of n environments."""

    # Since an episode began, (n,)
    steps: np.ndarray
    # Where it was some steps ago, in units of subgoals, (n, n_entries), and whether it has hardly moved since, (n,)
    anchor: np.ndarray
    is_stuck: np.ndarray
    # Goals of the data that it has been at, (n, N_PLACES)
    visited: np.ndarray


class EpisodeMemory(nn.Module):
    """
    Changes subgoals by what has happened in an episode.

    - One that goes on although it came to a place where the data had a goal has another goal: it is sent to the nearest
      of those places where it has not been yet. Been at all of them, it forgets them.
    - One that has hardly moved in the n steps that a subgoal takes gets noise on its subgoals for the next n: a
      deterministic policy that stands would stand for ever.

    Positions are in units of subgoals, where 1 is as far as the data go in n steps.

    :param n_entries: of a subgoal
    :param radius: how far is hardly moving, and how near is being there
    """

    # Where the data had their goals, (N_PLACES, n_entries); all in one place, and without effect, before they are known
    places: th.Tensor
    # Length of the subgoals of a search, and n, which nothing takes before it is known, scalars
    stride: th.Tensor
    n_steps: th.Tensor
    noise: th.Tensor

    def __init__(self, n_entries: int, radius: float):
        super().__init__()
        self.radius = radius
        self.register_buffer("places", th.zeros(N_PLACES, n_entries))
        self.register_buffer("stride", th.ones(()))
        self.register_buffer("n_steps", th.tensor(2**62))
        noise = th.randn(N_NOISE, n_entries, generator=th.Generator().manual_seed(0))
        self.register_buffer("noise", noise, persistent=False)

    def take_sizes(self, stride: th.Tensor, n_steps: int) -> None:
        """
        :param stride: length of the subgoals of a search, a scalar
        :param n_steps: that subgoals take
        """
        self.stride.copy_(stride)
        self.n_steps.fill_(n_steps)

    def take_goals(self, places: th.Tensor) -> None:
        """
        :param places: where the data had their goals, ``(n, n_entries)``, with n of at least 1
        """
        spread = th.linspace(0, len(places) - 1, N_PLACES, dtype=th.float64, device=places.device).round().long()
        self.places.copy_(places[spread])

    def forward(
        self,
        subgoals: th.Tensor,
        position: th.Tensor,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
    ) -> tuple[th.Tensor, EpisodeState]:
        """
        :param subgoals: what a policy without a memory would ask for, ``(n, n_entries)``
        :param position: ``(n, n_entries)``
        :param state: what the step before returned; None where all episodes start
        :param episode_start: where one does, ``(n,)``
        :return: subgoals, and the state with this step in it
        :raises ValueError: the state is another policy's, or one of them is of another number of environments
        """
        state = self._with_new_episodes(position.cpu().numpy(), state, episode_start)
        steps, anchor, is_stuck, visited = (th.as_tensor(column, device=position.device) for column in state)
        ways = self.places - position.unsqueeze(1)
        distances = ways.norm(dim=-1)
        nearest = distances.masked_fill(visited, th.inf).argmin(dim=1)
        way = ways[th.arange(len(ways)), nearest]
        subgoals = th.where(visited.any(dim=1, keepdim=True), within_limits(way, self.stride), subgoals)
        visited = visited | (distances < self.radius)
        visited = visited & ~visited.all(dim=1, keepdim=True)

        is_due = (steps % self.n_steps == 0) & (steps > 0)
        is_stuck = th.where(is_due, (position - anchor).norm(dim=-1) < self.radius, is_stuck)
        anchor = th.where(is_due.unsqueeze(1), position, anchor)
        noisy = (subgoals + self.noise[steps % N_NOISE]).clamp(-1, 1)
        subgoals = th.where(is_stuck.unsqueeze(1), noisy, subgoals)
        after = (steps + 1, anchor, is_stuck, visited)
        return subgoals, EpisodeState(*(column.cpu().numpy() for column in after))

    @staticmethod
    def _with_new_episodes(
        position: np.ndarray, state: tuple[np.ndarray, ...] | None, episode_start: np.ndarray | None
    ) -> EpisodeState:
        n = len(position)
        nothing = EpisodeState(np.zeros(n, np.int64), position, np.zeros(n, bool), np.zeros((n, N_PLACES), bool))
        if state is None:
            return nothing
        shapes, expected = ([np.shape(column) for column in columns] for columns in (state, nothing))
        if shapes != expected:
            raise ValueError(
                f"state has arrays of shape {shapes}, not {expected}: pass what `predict` returned for the same "
                f"{n} environment(s), or None where all episodes start."
            )
        if episode_start is None:
            return EpisodeState(*state)
        if np.size(episode_start) not in (1, n):
            raise ValueError(f"episode_start has {np.size(episode_start)} entries, the observations are of {n}.")
        starts = np.broadcast_to(np.reshape(episode_start, -1).astype(bool), n)
        columns = (
            np.where(starts.reshape(-1, *[1] * (old.ndim - 1)), new, old)
            for new, old in zip(nothing, state, strict=True)
        )
        return EpisodeState(*columns)


def within_limits(directions: th.Tensor, length: th.Tensor) -> th.Tensor:
    """Subgoals of one length, ``(..., n_entries)``, shorter where an entry would leave [-1, 1]: clipping turns them."""
    subgoals = nn.functional.normalize(directions, dim=-1) * length
    return subgoals / subgoals.abs().amax(dim=-1, keepdim=True).clamp(min=1)
