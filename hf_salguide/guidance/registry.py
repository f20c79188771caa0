"""The registry of guidance methods."""

import difflib
import inspect
from typing import Any

from .base import Guidance

PLAIN = "none"
_REGISTRY: dict[str, type[Guidance]] = {}


def register_guidance(cls: type[Guidance]) -> type[Guidance]:
    """
    Class decorator that makes a [`Guidance`] known by its `name`.

    Raises:
        TypeError: if `cls` is not a subclass of [`Guidance`], or has no `name`.
        ValueError: if another class has the name.
    """
    if not (inspect.isclass(cls) and issubclass(cls, Guidance)):
        raise TypeError(f"register_guidance takes a subclass of Guidance, not {cls!r}.")
    name = getattr(cls, "name", None)
    if not isinstance(name, str):
        raise TypeError(f"{cls.__name__}.name={name!r}: give the class a name that users can write in guidance=.")
    known = _REGISTRY.get(name)
    # The very same definition may be run again, in a notebook's cell or a reloaded module.
    same = known is not None and (known.__module__, known.__qualname__) == (cls.__module__, cls.__qualname__)
    if known is not None and not same:
        raise ValueError(f'guidance="{name}" is taken by {known.__name__}; give {cls.__name__} another name.')
    _REGISTRY[name] = cls
    return cls


def list_guidance() -> list[str]:
    """
    The names of all methods, sorted. `"none"`, plain training, is valid as `guidance=` too, and is not a method.

    Example:

    ```python
    >>> from hf_salguide import list_guidance
    >>> "cyborg" in list_guidance()
    True
    ```
    """
    return sorted(name for name in _REGISTRY if name != PLAIN)


def guidance_class(name: str) -> type[Guidance]:
    """
    The class of a method.

    Raises:
        ValueError: for an unknown name, with the nearest known one.
    """
    if name not in _REGISTRY:
        known = [PLAIN, *list_guidance()]
        nearest = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)[0]
        raise ValueError(f'guidance="{name}" is not known; did you mean "{nearest}"? Known: {", ".join(known)}.')
    return _REGISTRY[name]


def get_guidance(name: str, **options: Any) -> Guidance:
    """
    Builds a guidance method.

    Args:
        name (`str`): one of [`list_guidance`].
        **options: the method's own choices, see its class.

    Returns:
        [`Guidance`]

    Raises:
        ValueError: for an unknown name or option, or an option's unknown value; the message has the nearest known one.

    Example:

    ```python
    >>> from hf_salguide import get_guidance
    >>> get_guidance("cyborg", cam_class="predicted")
    Cyborg(cam_class='predicted', resize='area', distance='mse')
    ```
    """
    cls = guidance_class(name)
    known = list(guidance_options(cls))
    for option in options:
        if option not in known:
            nearest = difflib.get_close_matches(option, known, n=1, cutoff=0.0)
            hint = f'did you mean "{nearest[0]}"? Known: {", ".join(known)}.' if nearest else "it takes none."
            raise ValueError(f'guidance_options: "{option}" is not an option of guidance="{name}"; {hint}')
    return cls(**options)


def guidance_options(cls: type[Guidance]) -> dict[str, Any]:
    """The options of a method and their defaults."""
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    named = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return {parameter.name: parameter.default for parameter in parameters if parameter.kind in named}
