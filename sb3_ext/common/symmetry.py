"""Robots whose legs are alike: what one sees in the frame of the leg that is ahead."""

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from torch import nn

from sb3_ext.common.standardize import CLIP, STD_EPSILON

Entries = tuple[int, ...]

# x and y
N_POSITION = 2
# Of quaternions from 1, half of them: Gymnasium's Ant starts episodes with a noisy one
NORM_TOLERANCE = 0.05


@dataclass(frozen=True)
class RotationalSymmetry:
    """
    A robot with n legs that are alike, 360 / n degrees apart about its vertical axis. Nothing in physics knows which of
    them is the first. Where an observation has what, by indices of entries, x and y being the first two:

    :param quaternion: Orientation (w, x, y, z), which turns the robot's axes into the world's.
    :param velocity: Three entries, along the world's axes.
    :param angular_velocity: Three entries, along the robot's axes, as MuJoCo has those of free joints.
    :param joints: Angles and velocities of each leg's joints, leg by leg, counterclockwise as seen from above.
    :param actions: Entries of the action, likewise.
    :param joint_signs: 1, or -1 for a joint that is mounted the other way round; all 1 if None.
    :param action_signs: Likewise.
    :param n_entries: Of the observation, where others do not fit; None takes further ones for the same in all frames.
    :raises ValueError: these are no whole numbers, not as many as there ought to be, or of different numbers of legs.
    """

    quaternion: Entries
    velocity: Entries
    angular_velocity: Entries
    joints: tuple[Entries, ...]
    actions: tuple[Entries, ...]
    joint_signs: tuple[Entries, ...] | None = None
    action_signs: tuple[Entries, ...] | None = None
    n_entries: int | None = None

    def __post_init__(self) -> None:
        for name, length in (("quaternion", 4), ("velocity", 3), ("angular_velocity", 3)):
            entries = _whole_numbers(getattr(self, name))
            if entries.shape != (length,):
                raise ValueError(
                    f"symmetry: {name}={getattr(self, name)!r} must be {length} entries of the observation."
                )
            object.__setattr__(self, name, tuple(entries.tolist()))
        for name, of in (("joints", "joint_signs"), ("actions", "action_signs")):
            legs, signs = _table(name, getattr(self, name)), getattr(self, of)
            signs = np.ones_like(legs) if signs is None else _table(of, signs)
            if signs.shape != legs.shape or not (np.abs(signs) == 1).all():
                raise ValueError(f"symmetry: {of} must be 1 or -1 for each of the {name}, shape {legs.shape}.")
            object.__setattr__(self, name, tuple(map(tuple, legs.tolist())))
            object.__setattr__(self, of, tuple(map(tuple, signs.tolist())))
        if len(self.joints) != len(self.actions):
            raise ValueError(f"symmetry: joints are of {len(self.joints)} legs, actions of {len(self.actions)}.")

    @property
    def observed(self) -> Entries:
        """All entries of the observation that it names."""
        return (*self.quaternion, *self.velocity, *self.angular_velocity, *(i for leg in self.joints for i in leg))

    def relabel(self, observation: np.ndarray, action: np.ndarray, turns: int) -> tuple[np.ndarray, np.ndarray]:
        """
        The same robot in the same state, with another leg as the first. A simulator that starts from there must come to
        the same, relabelled: that tells whether entries, the order of legs and signs are right.

        :param observation: ``(obs_dim,)``
        :param action: ``(action_dim,)``
        :param turns: how many legs further the first one is
        :return: both, of the same shapes
        """
        seen, acted = np.array(observation, float), np.array(action, float)
        angle = 2 * np.pi * turns / len(self.joints)
        (w, x, y, z), (cos, sin) = seen[list(self.quaternion)], (np.cos(angle / 2), np.sin(angle / 2))
        seen[list(self.quaternion)] = w * cos - z * sin, x * cos + y * sin, y * cos - x * sin, z * cos + w * sin
        (x, y, _), (cos, sin) = seen[list(self.angular_velocity)], (np.cos(angle), np.sin(angle))
        seen[list(self.angular_velocity[:2])] = cos * x + sin * y, cos * y - sin * x
        for entries, legs, signs in ((seen, self.joints, self.joint_signs), (acted, self.actions, self.action_signs)):
            of_legs = entries[np.array(legs)] * np.array(signs)
            entries[np.array(legs)] = np.roll(of_legs, -turns, axis=0) * np.array(signs)
        return seen, acted

    def check(self, observation_space: spaces.Space, action_space: spaces.Space) -> None:
        """
        :param observation_space: vectors
        :param action_space: vectors
        :raises ValueError: spaces have other entries, or bounds of actions differ between legs
        """
        n_entries, n_actions = spaces.flatdim(observation_space), spaces.flatdim(action_space)
        if self.n_entries not in (None, n_entries):
            raise ValueError(
                f"symmetry: it is of observations of {self.n_entries} entries, these have {n_entries}. Gymnasium's Ant "
                "has 29 with exclude_current_positions_from_observation=False, include_cfrc_ext_in_observation=False."
            )
        observed, acted = list(self.observed), sorted(i for leg in self.actions for i in leg)
        if len(set(observed)) < len(observed) or min(observed) < N_POSITION or max(observed) >= n_entries:
            raise ValueError(
                f"symmetry: entries of the observation must be different ones in [{N_POSITION}, {n_entries - 1}], "
                f"since x and y come first in a vector of {n_entries}, not {observed}."
            )
        if acted != list(range(n_actions)):
            raise ValueError(f"symmetry: each of the {n_actions} entries of the action must be one leg's, not {acted}.")
        assert isinstance(action_space, spaces.Box)
        legs = np.array(self.actions)
        low, high = action_space.low.reshape(-1)[legs], action_space.high.reshape(-1)[legs]
        is_mirrored = np.array(self.action_signs) < 0
        for bounds in (np.where(is_mirrored, -high, low), np.where(is_mirrored, -low, high)):
            if not np.allclose(bounds, bounds[0]):
                raise ValueError(
                    "symmetry: actions of legs that are alike have the same bounds, the other way round where "
                    f"action_signs are -1, unlike in {action_space}."
                )


def _whole_numbers(values: Any) -> np.ndarray:
    """As an array; empty where they are none."""
    try:
        array = np.array(values)
    except ValueError:  # rows of several lengths
        return np.zeros(0, int)
    return array if np.issubdtype(array.dtype, np.integer) else np.zeros(0, int)


def _table(name: str, rows: Any) -> np.ndarray:
    table = _whole_numbers(rows)
    if table.ndim != 2:
        raise ValueError(f"symmetry: {name}={rows!r} must be a list of whole numbers for each leg, as many for each.")
    return table


# Gymnasium's Ant and AntMaze with x and y observed, 29 entries; a hip and an ankle for each leg
ANT = RotationalSymmetry(
    quaternion=(3, 4, 5, 6),
    velocity=(15, 16, 17),
    angular_velocity=(18, 19, 20),
    joints=((7, 8, 21, 22), (9, 10, 23, 24), (11, 12, 25, 26), (13, 14, 27, 28)),
    actions=((2, 3), (4, 5), (6, 7), (0, 1)),
    joint_signs=((1, 1, 1, 1), (1, -1, 1, -1), (1, -1, 1, -1), (1, 1, 1, 1)),
    action_signs=((1, 1), (1, -1), (1, -1), (1, 1)),
    n_entries=29,
)
SYMMETRIES = {"ant": ANT}


def as_symmetry(value: Any) -> RotationalSymmetry:
    """
    :param value: a name, a :class:`RotationalSymmetry`, or a mapping of its arguments
    :raises ValueError: it is none of them
    """
    if isinstance(value, RotationalSymmetry):
        return value
    if isinstance(value, str) and value in SYMMETRIES:
        return SYMMETRIES[value]
    if not isinstance(value, Mapping):
        raise ValueError(
            f"symmetry={value!r} must be one of {list(SYMMETRIES)}, a RotationalSymmetry or a dict of its arguments."
        )
    arguments = [field.name for field in fields(RotationalSymmetry)]
    required = {field.name for field in fields(RotationalSymmetry) if field.default is MISSING}
    missing, unknown = sorted(required - value.keys()), sorted(value.keys() - set(arguments))
    if missing or unknown:
        raise ValueError(f"symmetry lacks {missing} and has unknown {unknown}: its arguments are {arguments}.")
    return RotationalSymmetry(**value)


class BodyFrame(nn.Module):
    r"""
    Sees a robot from the leg that is ahead, one that is to move somewhere: of the n frames that its legs give, the one
    whose first axis points there most nearly. Whichever way it is to go, and whichever leg is ahead, what it sees and
    does is the same if it is the same physically: a function of this frame has the robot's symmetry exactly
    (canonicalization, Kaba et al. 2023, https://arxiv.org/abs/2211.06489).

    Where a walker goes is not exactly along one of its axes; ``heading`` is by how much it differs in the data, on the
    circular average of 360 / n degrees.

    :param symmetry: of the robot
    :param n_entries: of the observation
    """

    turned_joints: th.Tensor
    joint_signs: th.Tensor
    turned_actions: th.Tensor
    action_signs: th.Tensor
    quaternion: th.Tensor
    velocity: th.Tensor
    angular_velocity: th.Tensor
    # Entries that are neither x and y nor the symmetry's, such as z: the same in all frames
    others: th.Tensor
    # Radians
    heading: th.Tensor
    mean: th.Tensor
    scale: th.Tensor

    def __init__(self, symmetry: RotationalSymmetry, n_entries: int):
        super().__init__()
        self.symmetry, self.n_legs = symmetry, len(symmetry.joints)
        joints, actions = np.array(symmetry.joints), np.array(symmetry.actions)
        # Tensors on the device, which a CUDA graph can index by
        tables = {
            "quaternion": np.array(symmetry.quaternion),
            "velocity": np.array(symmetry.velocity),
            "angular_velocity": np.array(symmetry.angular_velocity),
            "turned_joints": self._turned(joints),
            "joint_signs": self._turned_signs(np.array(symmetry.joint_signs)),
            # In the order of the action's entries
            "turned_actions": self._turned(actions)[:, np.argsort(actions.reshape(-1))],
            "action_signs": self._turned_signs(np.array(symmetry.action_signs))[:, np.argsort(actions.reshape(-1))],
            "others": np.setdiff1d(np.arange(N_POSITION, n_entries), symmetry.observed),
        }
        for name, table in tables.items():
            self.register_buffer(name, th.as_tensor(table), persistent=False)
        self.n_inputs = len(self.others) + 3 + joints.size + 3 + 3 + N_POSITION
        self.register_buffer("heading", th.zeros(()))
        self.register_buffer("mean", th.zeros(self.n_inputs))
        self.register_buffer("scale", th.ones(self.n_inputs))

    def _turned(self, legs: np.ndarray) -> np.ndarray:
        """What takes the place of each entry, leg by leg, after k turns, ``(n_legs, n_per_leg) -> (n_turns, -1)``."""
        return np.stack([np.roll(legs, -k, axis=0).reshape(-1) for k in range(self.n_legs)])

    def _turned_signs(self, signs: np.ndarray) -> np.ndarray:
        return (self._turned(signs) * signs.reshape(-1)).astype(np.float32)

    def check_observations(self, observations: np.ndarray) -> None:
        """
        :param observations: of the data, ``(n, obs_dim)``
        :raises ValueError: they are no raw ones of such a robot
        """
        norms = np.linalg.norm(observations[:, self.symmetry.quaternion], axis=1)
        if np.median(np.abs(norms - 1)) > NORM_TOLERANCE:
            raise ValueError(
                f"symmetry: entries {self.symmetry.quaternion} of the data's observations are no unit quaternions, "
                f"with norms of {norms.min():.3g} to {norms.max():.3g}. Pass observations as the environment has them "
                "(standardize_observations=True scales them afterwards), or the symmetry of this robot."
            )

    def take_statistics(self, observations: th.Tensor, ways: th.Tensor) -> None:
        """
        :param observations: raw, ``(n, obs_dim)``
        :param ways: where the robot went from there, in the units of x and y, ``(n, 2)``
        """
        # By how far it went, since one that stands heads for nowhere
        angles = self.n_legs * (_angle(ways) - self._yaw(observations))
        lengths = ways.norm(dim=-1)
        self.heading.copy_(th.atan2((lengths * angles.sin()).sum(), (lengths * angles.cos()).sum()) / self.n_legs)
        inputs, _ = self._seen(observations, ways)
        self.mean.copy_(inputs.mean(dim=0))
        self.scale.copy_(1 / (inputs.std(dim=0) + STD_EPSILON))

    def forward(self, observations: th.Tensor, ways: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        :param observations: raw, ``(..., obs_dim)``
        :param ways: where the robot is to go from there, along the world's axes in the units of x and y, ``(..., 2)``
        :return: what it sees, standardised, ``(..., n_inputs)``, and by how many legs its frame is turned, ``(...,)``
        """
        inputs, turns = self._seen(observations, ways)
        return ((inputs - self.mean) * self.scale).clamp(-CLIP, CLIP), turns

    def _seen(self, observations: th.Tensor, ways: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        per_turn = 2 * math.pi / self.n_legs
        yaw = self._yaw(observations)
        turns = ((_angle(ways) - yaw - self.heading) / per_turn).round().long() % self.n_legs
        turned = turns * per_turn
        joints = observations.gather(-1, self.turned_joints[turns]) * self.joint_signs[turns]
        of_body = _rotated(-turned, self._up(observations), observations[..., self.angular_velocity])
        of_world = _rotated(-yaw - turned, observations[..., self.velocity], ways)
        return th.cat([observations[..., self.others], joints, *of_body, *of_world], dim=-1), turns

    def turn_actions(self, actions: th.Tensor, turns: th.Tensor) -> th.Tensor:
        """
        :param actions: of the robot, ``(..., action_dim)``
        :param turns: by how many legs a frame is turned, ``(...,)``; minus that gets back
        :return: as seen from that frame, ``(..., action_dim)``
        """
        turns = turns % self.n_legs
        return actions.gather(-1, self.turned_actions[turns]) * self.action_signs[turns]

    def _yaw(self, observations: th.Tensor) -> th.Tensor:
        """
        How far the robot is turned about its vertical axis before it is tilted, in radians, ``(..., obs_dim) ->
        (...,)``. A turn by another leg adds to that exactly; to the direction of a tilted axis it would not.
        """
        quaternions = observations[..., self.quaternion]
        return 2 * th.atan2(quaternions[..., 3], quaternions[..., 0])

    def _up(self, observations: th.Tensor) -> th.Tensor:
        """The world's vertical axis along the robot's, ``(..., obs_dim) -> (..., 3)``."""
        quaternions = nn.functional.normalize(observations[..., self.quaternion], dim=-1)
        w, x, y, z = quaternions.unbind(dim=-1)
        return th.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], dim=-1)


def _angle(vectors: th.Tensor) -> th.Tensor:
    """``(..., 2) -> (...,)``"""
    return th.atan2(vectors[..., 1], vectors[..., 0])


def _rotated(angle: th.Tensor, *vectors: th.Tensor) -> list[th.Tensor]:
    """About the vertical axis; what comes after x and y stays, ``(..., n) -> (..., n)`` for each."""
    cos, sin = angle.cos(), angle.sin()
    return [
        th.cat([th.stack([cos * x - sin * y, sin * x + cos * y], dim=-1), others], dim=-1)
        for x, y, others in ((v[..., 0], v[..., 1], v[..., 2:]) for v in vectors)
    ]
