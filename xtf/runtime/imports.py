"""The user's own functions and classes: by a dotted path in a setting, or by the name that an installed package gives.

A package names them as entry points: `xtf.methods`, `xtf.attributes`, `xtf.tasks` (readers), `xtf.graders`,
`xtf.exports`, and `xtf.conf` for a folder of YAML files (docs/extending.md).
"""

from __future__ import annotations

import logging
import pkgutil
from collections.abc import Callable, Collection
from importlib.metadata import entry_points
from typing import Any, TypeVar

log = logging.getLogger(__name__)
Kind = TypeVar("Kind")


def installed(group: str, taken: Collection[str] = ()) -> dict[str, str]:
    """What installed packages offer under an entry point's group: dotted paths by name; nothing is imported.

    A name in `taken`, which is ours, is left out with a warning.
    """
    found = {}
    for point in entry_points(group=group):
        if point.name in taken:
            log.warning("%s=%s of an installed package is left out: the name is ours", group, point.name)
        else:
            found[point.name] = point.value.replace(":", ".")
    return found


def installed_classes(group: str, base: type[Kind], taken: Collection[str] = ()) -> dict[str, type[Kind]]:
    """The classes that `installed` names, imported; one that cannot be, or is no `base`, is left out with a warning."""
    return _imported(group, taken, base, lambda found: isinstance(found, type) and issubclass(found, base))


def installed_objects(group: str, kind: type[Kind], taken: Collection[str] = ()) -> dict[str, Kind]:
    """The same of objects of a `kind`."""
    return _imported(group, taken, kind, lambda found: isinstance(found, kind))


def _imported(group: str, taken: Collection[str], kind: type, fits: Callable[[Any], bool]) -> dict[str, Any]:
    found = {}
    for name, path in installed(group, taken).items():
        try:
            one = pkgutil.resolve_name(path)
        except Exception as error:  # whatever importing somebody else's module raises
            log.warning("%s=%s is left out, for %s cannot be imported: %r", group, name, path, error)
            continue
        if fits(one):
            found[name] = one
        else:
            log.warning("%s=%s is left out: %s is no %s.%s", group, name, path, kind.__module__, kind.__qualname__)
    return found


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
