"""The registry: every solver, grid, path, guide and system under one name, with what it claims.

The contract suite, the command line and the tables in the documentation all read it, so a thing
that is registered is tested, listed and documented without another line of code.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from pathline.core.errors import UsageError, unknown

T = TypeVar("T")
C = TypeVar("C", bound=type[Any])


def _key(name: str) -> str:
    """Fold the spellings people use: "DPM++ 2M" and "dpmpp_2m" are the same name."""
    return name.lower().replace("++", "pp").replace("-", "_").replace(" ", "_")


@dataclass(frozen=True)
class Entry(Generic[T]):
    """One registered thing.

    Args:
        name: its identifier, in snake case.
        make: what builds it; called with `preset`, overridden by the user's own arguments.
        preset: the arguments this name stands for.
        aliases: other names that people know it by.
        paper: where it is from.
        about: one line on what it is.
    """

    name: str
    make: Callable[..., T]
    preset: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    aliases: tuple[str, ...] = ()
    paper: str = ""
    about: str = ""

    def build(self, **arguments: Any) -> T:
        """Build the thing.

        Raises:
            UsageError: an argument it does not take, or a value it refuses.
        """
        arguments = {**self.preset, **arguments}
        known = _parameters(self.make)
        for name in arguments:
            if name not in known:
                raise UsageError(
                    f"{self.name} takes no {name!r}; it takes {', '.join(known) or 'no arguments'}."
                )
        return self.make(**arguments)


@lru_cache(maxsize=512)
def _parameters(make: Callable[..., object]) -> Mapping[str, inspect.Parameter]:
    """Return what a registered callable takes; looking it up takes as long as a small step."""
    return inspect.signature(make).parameters


class Registry(Generic[T]):
    """Names of one kind of thing, in the order in which they were registered."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Entry[T]] = {}
        self._names: dict[str, str] = {}

    def add(self, entry: Entry[T]) -> Entry[T]:
        """Register `entry` under its name and aliases; a name that is taken is refused."""
        for name in (entry.name, *entry.aliases):
            taken = self._names.setdefault(_key(name), entry.name)
            if taken != entry.name:
                raise ValueError(f"{self.kind} {name!r} already means {taken!r}")
        self._entries[entry.name] = entry
        return entry

    def register(
        self,
        name: str,
        *,
        aliases: tuple[str, ...] = (),
        paper: str = "",
        variants: Mapping[str, tuple[Mapping[str, Any], tuple[str, ...]]] | None = None,
    ) -> Callable[[C], C]:
        """Return a class decorator that registers the class, and named presets of it.

        Args:
            name: the family's identifier.
            aliases: other names of the family.
            paper: where it is from.
            variants: preset name → (arguments, aliases).
        """

        def decorate(cls: C) -> C:
            about = (inspect.getdoc(cls) or "").split("\n")[0]
            self.add(Entry(name, cls, MappingProxyType({}), aliases, paper, about))
            for variant, (preset, others) in (variants or {}).items():
                self.add(Entry(variant, cls, MappingProxyType(dict(preset)), others, paper, about))
            return cls

        return decorate

    def entry(self, name: str) -> Entry[T]:
        """Return the entry of a name or alias.

        Raises:
            UsageError: nobody registered it; the message has the nearest names.
        """
        found = self._names.get(_key(name))
        if found is None:
            aliases = (alias for entry in self for alias in entry.aliases)
            raise unknown(self.kind, name, [*self._entries, *aliases])
        return self._entries[found]

    def build(self, name: str, **arguments: Any) -> T:
        """Build the thing registered as `name`."""
        return self.entry(name).build(**arguments)

    def has(self, thing: T) -> bool:
        """Whether the thing's class is registered."""
        return any(entry.make is type(thing) for entry in self)

    def describe(self, thing: T) -> dict[str, Any]:
        """Return what rebuilds a registered dataclass: its family's name and all its arguments.

        Defaults are told too: what a receipt says must not change when a default does.

        Raises:
            UsageError: its class is not registered.
        """
        for entry in self:
            if entry.make is type(thing) and not entry.preset:
                names = [f.name for f in fields(thing) if f.init]  # type: ignore
                return {"name": entry.name} | {name: _told(getattr(thing, name)) for name in names}
        raise UsageError(f"{type(thing).__name__} is not a registered {self.kind}.")

    def rebuild(self, description: Mapping[str, Any]) -> T:
        """Build what `describe` described."""
        arguments = dict(description)
        name = str(arguments.pop("name"))
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()}
        return self.build(name, **values)

    def __iter__(self) -> Iterator[Entry[T]]:
        return iter(self._entries.values())

    def __contains__(self, name: str) -> bool:
        return _key(name) in self._names


def _told(value: Any) -> Any:
    """Return a value as plain JSON: what describes itself (a table of statistics) does so."""
    if isinstance(value, tuple):
        return [_told(each) for each in value]
    describe = getattr(value, "describe", None)
    if callable(describe):
        return describe()
    return list(value) if isinstance(value, tuple) else value
