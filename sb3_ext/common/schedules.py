"""Schedules from plain values, so that they can stand in a YAML file."""

from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import FloatSchedule, LinearSchedule


def as_schedule(value: float | str | Schedule, name: str) -> FloatSchedule:
    """
    :param value: a constant, RL Zoo's ``"lin_0.5"`` (from 0.5 down to 0), or a function of the remaining progress,
        which goes from 1 to 0
    :param name: the argument's name, for the message
    :raises ValueError: the string is not of that form, or the first value is negative.
    """
    if isinstance(value, str):
        prefix, _, start = value.partition("_")
        try:
            schedule = FloatSchedule(LinearSchedule(float(start), end=0.0, end_fraction=1.0))
        except ValueError:
            prefix = ""
        if prefix not in ("lin", "linear"):
            raise ValueError(
                f"{name}={value!r}: write a number, 'lin_<start>' or a function of the remaining progress."
            )
    else:
        schedule = FloatSchedule(value)
    if not schedule(1.0) >= 0:  # NaN too
        raise ValueError(f"{name}={value!r} must be a number that is not negative.")
    return schedule
