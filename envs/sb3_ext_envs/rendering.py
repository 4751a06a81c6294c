"""What MuJoCo needs to draw, and the error where it is missing."""

import warnings


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
