"""Schedules from plain values, so that they can stand in a YAML file."""

import math

import numpy as np
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import FloatSchedule, LinearSchedule


class CosineSchedule:
    """
    Half a cosine from ``start`` at the beginning down to 0 at the end.

    :param start: first value
    """

    def __init__(self, start: float):
        self.start = start

    def __call__(self, progress_remaining: float) -> float:
        return self.start * 0.5 * (1 + math.cos(math.pi * (1 - progress_remaining)))


def as_schedule(value: float | str | Schedule, name: str) -> FloatSchedule:
    """
    :param value: a constant, also as the text that YAML makes of 3e-5, RL Zoo's ``"lin_0.5"`` (from 0.5 down to 0),
        ``"cos_0.5"`` (likewise by a cosine), or a function of the remaining progress, which goes from 1 to 0
    :param name: the argument's name, for the message
    :raises ValueError: the string is not of that form, or the first value is negative.
    """
    if isinstance(value, str) and _is_number(value):
        value = float(value)
    if isinstance(value, str):
        prefix, _, start = value.partition("_")
        try:
            first = float(start)
        except ValueError:
            prefix = ""
        if prefix in ("lin", "linear"):
            schedule = FloatSchedule(LinearSchedule(first, end=0.0, end_fraction=1.0))
        elif prefix == "cos":
            schedule = FloatSchedule(CosineSchedule(first))
        else:
            raise ValueError(
                f"{name}={value!r}: write a number, 'lin_<start>', 'cos_<start>' or a function of the progress left."
            )
    else:
        schedule = FloatSchedule(value if callable(value) else float(value))
    if not 0 <= schedule(1.0) < math.inf:  # NaN too
        raise ValueError(f"{name}={value!r} must be a finite number that is not negative.")
    return schedule


def is_whole(value: object) -> bool:
    """Whether a value is a whole number, also one that YAML has as 1e3."""
    return isinstance(value, (int, float, np.integer, np.floating)) and math.isfinite(value) and int(value) == value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
