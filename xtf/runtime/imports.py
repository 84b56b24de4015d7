"""What a setting names by its dotted path: the user's own functions and classes."""

from __future__ import annotations

import pkgutil
from typing import Any


def import_named(key: str, path: str, form: str) -> Any:
    """The callable at `path` ("module.name"), which the setting `key` names; `form` shows how it should be written.

    Raises:
        ValueError: no such module or name, or it is not callable.
    """
    try:
        found = pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{key}: {error}. Give {form}, with the module on PYTHONPATH or installed") from error
    if not callable(found):
        raise ValueError(f"{key}: {path} is a {type(found).__name__}. Give {form}")
    return found
