"""Check JSON of clients against a schema, and describe its faults in words.

Schemas are written in a small part of JSON Schema; /openapi.json publishes the same ones.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

Schema = Mapping[str, Any]

HIGHEST_INTEGER = 2**31 - 1  # of Postgres' integer

# No plan or report is deeper, and parsing it would exhaust the stack.
_DEEPEST = 100

# The one `pattern` that is known here.
NOT_BLANK = r"\S"


class Fault(NamedTuple):
    """A violation of a schema: the path of the field, its value, and the expected one in words."""

    field: str
    given: Any
    expected: str

    def __str__(self) -> str:
        given = "" if self.given is None else f", not {self.given!r:.60}"
        return f"{self.field or 'the body'}: expected {self.expected}{given}"


def faults(value: object, schema: Schema, field: str = "", depth: int = 0) -> Iterator[Fault]:
    """Yield each violation of *schema* by *value*.

    *field*: the path of *value*, such as "phases[0].title"; *depth*: its level of nesting.
    """
    if depth > _DEEPEST:
        yield Fault(field, None, f"nothing that is nested more than {_DEEPEST} levels deep")
    elif not _fits(value, schema):
        storable = not isinstance(value, str) or _is_text(value)
        yield Fault(
            field, value, _words(schema) if storable else "text without NUL or unpaired surrogates"
        )
    elif isinstance(value, dict):
        yield from _faults_in_object(value, schema, field, depth + 1)
    elif isinstance(value, list):
        for index, element in enumerate(value):
            yield from faults(element, schema.get("items", {}), f"{field}[{index}]", depth + 1)


def _faults_in_object(
    value: dict[str, Any], schema: Schema, field: str, depth: int
) -> Iterator[Fault]:
    properties = schema.get("properties", {})
    for name in schema.get("required", ()):
        if name not in value:
            yield Fault(_join(field, name), None, f"{_words(properties[name])}; it is missing")
    for name, member in value.items():
        if name in properties:
            yield from faults(member, properties[name], _join(field, name), depth)
        elif schema.get("additionalProperties", True) is False:
            names = f"one of {', '.join(properties)}" if properties else "nothing"
            yield Fault(_join(field, name), None, f"{names}; it is unknown")
        elif not _is_text(name):
            yield Fault(field, name, "names without NUL or unpaired surrogates")
        else:
            yield from faults(member, {}, _join(field, name), depth)


def _join(field: str, name: str) -> str:
    return f"{field}.{name:.60}" if field else f"{name:.60}"


def _fits(value: object, schema: Schema) -> bool:
    types = schema.get("type")
    if types is not None:
        names = [types] if isinstance(types, str) else types
        if not any(_is(value, name) for name in names):
            return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    if isinstance(value, str):
        blank = schema.get("pattern") == NOT_BLANK and not value.strip()
        return bool(
            _is_text(value) and len(value) <= schema.get("maxLength", len(value)) and not blank
        )
    if isinstance(value, int | float) and not isinstance(value, bool):
        return bool(schema.get("minimum", value) <= value <= schema.get("maximum", value))
    if isinstance(value, list):
        return bool(len(value) <= schema.get("maxItems", len(value)))
    return True


def _is(value: object, name: str) -> bool:
    match name:
        case "null":
            return value is None
        case "boolean":
            return isinstance(value, bool)
        case "integer":
            return isinstance(value, int | float) and not isinstance(value, bool) and value % 1 == 0
        case "number":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "string":
            return isinstance(value, str)
        case "array":
            return isinstance(value, list)
    return isinstance(value, dict)


def _is_text(text: str) -> bool:
    """Whether Postgres can store it: no NUL, and no unpaired surrogate."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


def _words(schema: Schema) -> str:
    if "enum" in schema:
        return f"one of {', '.join(map(str, schema['enum']))}"
    types = schema.get("type", "string")
    name = types if isinstance(types, str) else next(each for each in types if each != "null")
    match name:
        case "integer" | "number":
            noun = "a whole number" if name == "integer" else "a number"
            low, high = schema.get("minimum"), schema.get("maximum")
            if high is not None:
                return f"{noun} from {low} to {high}"
            return noun if low is None else f"{noun}, {low} or more"
        case "boolean":
            return "true or false"
        case "array":
            most = schema.get("maxItems")
            return "a list" if most is None else f"a list of at most {most}"
        case "object":
            return "an object"
    longest = schema.get("maxLength")
    some = "text" if schema.get("pattern") != NOT_BLANK else "text that is not blank"
    return some if longest is None else f"{some} of at most {longest} characters"
