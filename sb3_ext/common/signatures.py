"""Signatures of constructors that pass arguments on."""

import inspect


def joint_signature(cls: type) -> inspect.Signature:
    """Arguments of a constructor, and in place of its ``**kwargs`` those of the constructors that they go to."""
    parameters: dict[str, inspect.Parameter] = {}
    for parent in cls.__mro__:
        if "__init__" not in vars(parent):
            continue
        own = list(inspect.signature(parent.__init__).parameters.values())[1:]  # type: ignore[misc]
        is_first = not parameters
        for parameter in own:
            if parameter.kind is parameter.VAR_KEYWORD:
                continue
            if not is_first:  # what is passed on is passed by name
                parameter = parameter.replace(kind=parameter.KEYWORD_ONLY)
            parameters.setdefault(parameter.name, parameter)
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in own):
            break
    return inspect.Signature(sorted(parameters.values(), key=lambda parameter: parameter.kind))
