"""A tree of names: `tree.attention.qkv.weight`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, Self, TypeVar

L = TypeVar("L")
V = TypeVar("V")


def to_mapping(key: DotTree[L], value: DotTree[V]) -> dict[L, V]:
    """From the leaves of `key` to the leaves of `value` that have the same name."""
    values = value.to_dict()
    return {leaf: values[name] for name, leaf in key.to_dict().items() if name in values}


class DotTree(Generic[L]):
    """Named leaves, nested by the dots in their names.

    A child is `tree.name`, `tree["name"]`, or `tree[3]` for a name that is a number (negative
    numbers count back from the largest). Names are Python identifiers or whole numbers.
    """

    def __init__(self, **kwargs: L | DotTree[L]):
        self._map: dict[str, Any] = {}
        for key, value in kwargs.items():
            self.insert(key, value)

    def __getattr__(self, key: str) -> Any:
        # reached for what is not an ordinary attribute; names of Python's own protocols never are
        if key.startswith("_"):
            raise AttributeError(key)
        try:
            return self.get(key)
        except KeyError as error:
            raise AttributeError(error.args[0]) from None

    def __getitem__(self, key: str | int) -> Any:
        return self.get(key)

    def __contains__(self, key: str | int) -> bool:
        try:
            self.get(key)
        except KeyError:
            return False
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(self._map)

    def get(self, key: str | int) -> Any:
        """The leaf or tree called `key`, which may have dots.

        Raises:
            KeyError: where there is none; the message lists the names there are.
        """
        head, _, rest = self._resolve(key).partition(".")
        if head not in self._map or (rest and not isinstance(self._map[head], DotTree)):
            raise KeyError(f"no entry called {key!r}; there are: {', '.join(self._map) or 'none'}")
        return self._map[head].get(rest) if rest else self._map[head]

    def insert(self, key: str | int, value: L | DotTree[L], overwrite: bool = False) -> None:
        """Add a leaf or a tree; dots in `key` make the trees on the way.

        Args:
            overwrite: take the place of what has this name, and go below trees that are there.

        Raises:
            ValueError: for an invalid name, or where the first name in `key` is taken (unless
                `overwrite`).
        """
        self._put(key, value, overwrite, merge=overwrite)

    def _put(self, key: str | int, value: L | DotTree[L], overwrite: bool, merge: bool) -> None:
        """`insert`; where `merge`, it goes below trees that are there."""
        if isinstance(key, int) and key < 0:
            raise ValueError(f"a numeric name cannot be negative, got {key}")
        head, _, rest = str(key).partition(".")
        if not head.isidentifier() and not head.isdecimal():
            raise ValueError(f"{head!r} in {key!r} is neither an identifier nor a whole number")
        child = self._map.get(head)
        below = merge and rest and isinstance(child, DotTree)
        if child is not None and not overwrite and not below:
            raise ValueError(
                f"{head!r} already exists, {key!r} needs overwrite=True; "
                f"there are: {', '.join(self._map)}"
            )
        if not rest:
            self._map[head] = value
            return
        # inserted into a copy, so that a failure further down leaves this tree as it was
        child = child.copy() if isinstance(child, DotTree) else type(self)()
        child._put(rest, value, overwrite, merge)
        self._map[head] = child

    def update(self, values: DotTree[L], overwrite: bool = False) -> None:
        """Add every leaf of `values`; trees of the same name are merged.

        Raises:
            ValueError: where a leaf's name is taken (unless `overwrite`).
        """
        for key, value in values.to_dict().items():
            self._put(key, value, overwrite, merge=True)

    def pop(self, key: str | int) -> Any:
        """Remove and return the leaf or tree called `key`.

        Raises:
            KeyError: where there is none.
        """
        name = self._resolve(key)
        parent, _, last = name.rpartition(".")
        found = self.get(name)
        del (self.get(parent) if parent else self)._map[last]
        return found

    def copy(self) -> Self:
        """A tree of its own with the same leaves."""
        tree = type(self)()
        for key, value in self._map.items():
            tree._map[key] = value.copy() if isinstance(value, DotTree) else value
        return tree

    def filter_keys(self, keys: Iterable[str]) -> Self:
        """A tree of the leaves whose name is one of `keys`, or lies below one of them."""
        wanted = [str(key) for key in keys]
        kept = {
            name: leaf
            for name, leaf in self.to_dict().items()
            if any(name == key or name.startswith(f"{key}.") for key in wanted)
        }
        return self.from_dict(kept)

    def map(self, fn: Callable[[L], Any]) -> Self:
        """A tree of the same names, with `fn` applied to each leaf."""
        return self.from_dict({name: fn(leaf) for name, leaf in self.to_dict().items()})

    def keys(self) -> list[str]:
        """The names of the children."""
        return list(self._map)

    def values(self) -> list[Any]:
        """The children: leaves and trees."""
        return list(self._map.values())

    def len(self) -> int:
        """How many children there are."""
        return len(self._map)

    def keys_flat(self) -> list[str]:
        """The dotted names of all leaves."""
        return list(self.to_dict())

    def values_flat(self) -> list[L]:
        """All leaves."""
        return list(self.to_dict().values())

    def len_flat(self) -> int:
        """How many leaves there are."""
        return len(self.to_dict())

    def to_dict(self) -> dict[str, L]:
        """From dotted names to leaves."""
        flat: dict[str, L] = {}
        for key, value in self._map.items():
            if isinstance(value, DotTree):
                flat.update({f"{key}.{name}": leaf for name, leaf in value.to_dict().items()})
            else:
                flat[key] = value
        return flat

    @classmethod
    def from_dict(cls, d: dict[str, Any] | dict[int, Any] | dict[str | int, Any]) -> Self:
        """The tree of a dictionary whose keys may have dots, its values be leaves or trees.

        Raises:
            ValueError: for an invalid name, or two that exclude each other.
        """
        tree = cls()
        for key, value in d.items():
            tree._put(key, value, overwrite=False, merge=True)
        return tree

    def to_mapping(self, values: DotTree[V]) -> dict[L, V]:
        """From the leaves of this tree to those of `values` that have the same name."""
        return to_mapping(self, values)

    def unpack(self) -> tuple[tuple[str, ...], tuple[L, ...]]:
        """Dotted names and leaves, both in the order of the names."""
        flat = sorted(self.to_dict().items(), key=lambda item: item[0])
        return tuple(name for name, _ in flat), tuple(leaf for _, leaf in flat)

    @classmethod
    def pack(cls, keys: Iterable[str | int], values: Iterable[Any]) -> Self:
        """The tree of dotted names and the leaves that go with them.

        Raises:
            ValueError: where there are more of one than of the other.
        """
        return cls.from_dict(dict(zip(keys, values, strict=True)))

    def _clear(self) -> None:
        """Remove all leaves; the trees stay, empty. Programs written for the SDK call it."""
        for key, value in list(self._map.items()):
            if isinstance(value, DotTree):
                value._clear()
            else:
                del self._map[key]

    def _resolve(self, key: str | int) -> str:
        number = key if isinstance(key, int) else int(key) if _is_negative(key) else None
        if number is None or number >= 0:
            return str(key)
        numeric = [int(name) for name in self._map if name.isdecimal()]
        return str(max(numeric, default=-1) + 1 + number)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.to_dict()})"


def _is_negative(key: str) -> bool:
    return key.startswith("-") and key[1:].isdecimal()
