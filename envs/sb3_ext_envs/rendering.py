"""What MuJoCo needs to draw, and the error where it is missing."""

import warnings
from typing import Any

import gymnasium as gym


def check_display() -> None:
    """
    Without a display GLFW ends the process in an assertion, which no ``except`` catches.

    :raises RuntimeError: there is no display.
    """
    import glfw

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", glfw.GLFWError)
        if not glfw.init():
            raise cannot_render()


def cannot_render() -> RuntimeError:
    """
    :return: the error to raise, whose message names ``MUJOCO_GL``
    """
    return RuntimeError(
        "MuJoCo cannot render on this machine. Set the environment variable MUJOCO_GL before Python starts: "
        "'egl' with a GPU driver, 'osmesa' for software rendering (Debian and Ubuntu: apt install libosmesa6), "
        "'glfw' with a screen."
    )


def render(simulator: Any, render_mode: str | None) -> Any:
    """
    :return: what the simulator draws; None, with a warning, where the environment was made without a render mode
    :raises RuntimeError: MuJoCo finds no way to draw on this machine.
    """
    if render_mode is None:
        gym.logger.warn('Nothing to render: make the environment with render_mode="rgb_array" or "human".')
        return None
    try:
        return simulator.render()
    except Exception as error:
        raise cannot_render() from error
