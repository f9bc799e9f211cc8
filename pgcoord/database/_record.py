"""The base of the classes of rows: a frozen dataclass whose methods are not generated.

`@dataclass` compiles six methods for each class. For all rows that would be a tenth of the time of
`pgcoord status`, and 1 MB of a coordinator.
"""

from dataclasses import Field, FrozenInstanceError, dataclass, field
from typing import Any, ClassVar, dataclass_transform


@dataclass_transform(frozen_default=True, field_specifiers=(Field, field))
class Record:
    """A row. A subclass annotates its columns, and its instances are made with all of them."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def __init_subclass__(cls) -> None:
        dataclass(init=False, repr=False, eq=False)(cls)

    def __init__(self, *values: object, **columns: object) -> None:
        """Raise `TypeError` unless there is one value for each column, by place or by name."""
        fields, given = self.__dataclass_fields__, len(values) + len(columns)
        columns.update(zip(fields, values, strict=False))
        if given != len(fields) or columns.keys() != fields.keys():
            raise TypeError(
                f"{type(self).__name__} has the {len(fields)} columns {', '.join(fields)};"
                f" {given} were given: {', '.join(columns)}"
            )
        for name, value in columns.items():
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> None:
        raise FrozenInstanceError(f"cannot assign to field {name!r}")

    def __delattr__(self, name: str) -> None:
        raise FrozenInstanceError(f"cannot delete field {name!r}")

    def _values(self) -> tuple[object, ...]:
        return tuple(getattr(self, name) for name in self.__dataclass_fields__)

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._values() == other._values()

    def __hash__(self) -> int:
        return hash(self._values())

    def __repr__(self) -> str:
        names = [each.name for each in self.__dataclass_fields__.values() if each.repr]
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
        return f"{type(self).__qualname__}({shown})"
