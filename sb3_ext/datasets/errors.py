"""The one error of this package."""


class DatasetError(ValueError):
    """A dataset is missing, broken, or not of the environment it is used with. The message names the fix."""
