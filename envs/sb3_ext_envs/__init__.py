"""Gymnasium environments of ``sb3_ext``: importing this package registers them."""

from sb3_ext_envs.registration import METAWORLD_TASKS, register_envs

__all__ = ["METAWORLD_TASKS", "register_envs"]

register_envs()
