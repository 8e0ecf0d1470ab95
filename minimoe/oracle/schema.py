"""A value held to a JSON schema, in as much of draft 2020-12 as our own schemas use."""
import json
import re
from pathlib import Path

HERE = Path(__file__).resolve().parent
TYPES = {"object": (dict,), "array": (list,), "string": (str,), "boolean": (bool,),
         "integer": (int,), "number": (int, float)}
IGNORED = {"$schema", "$defs", "title", "description"}
MEMBERS = {"properties", "patternProperties", "additionalProperties"}


def read_schema(name):
    """One of the schemas that are shipped: "manifest" or "case"."""
    return json.loads((HERE / f"{name}.schema.json").read_text(encoding="utf-8"))


def faults(value, schema, root=None, place=""):
    """What in a value its schema does not allow, a line each.

    ValueError for a schema that asks for what is not built.
    """
    root = root or schema
    if schema.keys() & MEMBERS:
        yield from _members(value, schema, root, place)
    for keyword, asked in schema.items():
        if keyword in IGNORED | MEMBERS:
            continue
        if keyword not in KEYWORDS:
            raise ValueError(f"faults: a schema's keyword is one of {', '.join(KEYWORDS)}; "
                             f"got {keyword}")
        yield from KEYWORDS[keyword](value, asked, schema, root, place)


def _is(value, name):
    return isinstance(value, TYPES[name]) and (name == "boolean" or not isinstance(value, bool))


def _type(value, asked, schema, root, place):
    names = [asked] if isinstance(asked, str) else asked
    if not any(_is(value, name) for name in names):
        yield f"{place or '/'}: needs {' or '.join(names)}; got {type(value).__name__}"


def _ref(value, asked, schema, root, place):
    found = root
    for part in asked.removeprefix("#/").split("/"):
        found = found[part]
    yield from faults(value, found, root, place)


def _any_of(value, asked, schema, root, place):
    if all(any(True for _ in faults(value, one, root, place)) for one in asked):
        yield f"{place or '/'}: is none of what is allowed"


def _required(value, asked, schema, root, place):
    if isinstance(value, dict):
        yield from (f"{place}/{name}: is missing" for name in asked if name not in value)


def _members(value, schema, root, place):
    """Three keywords about the members of an object, which go together."""
    if not isinstance(value, dict):
        return
    for name, part in value.items():
        fitting = [inner for key, inner in schema.get("properties", {}).items() if key == name]
        fitting += [inner for pattern, inner in schema.get("patternProperties", {}).items()
                    if re.search(pattern, name)]
        rest = schema.get("additionalProperties", True)
        if not fitting and rest is False:
            yield f"{place}/{name}: is unknown"
        for inner in fitting or ([rest] if isinstance(rest, dict) else []):
            yield from faults(part, inner, root, f"{place}/{name}")


def _items(value, asked, schema, root, place):
    if isinstance(value, list):
        for i, part in enumerate(value):
            yield from faults(part, asked, root, f"{place}/{i}")


def _check(kind, right, said):
    """A keyword that compares a value of some kind with what is asked."""
    def check(value, asked, schema, root, place):
        if _is(value, kind) and not right(value, asked):
            yield f"{place or '/'}: {said} {asked}; got {value!r:.60}"
    return check


def _enum(value, asked, schema, root, place):
    if not any(type(value) is type(one) and value == one for one in asked):
        yield f"{place or '/'}: needs one of {', '.join(map(str, asked))}; got {value!r:.60}"


KEYWORDS = {
    "type": _type, "$ref": _ref, "anyOf": _any_of, "required": _required, "items": _items,
    "enum": _enum,
    "const": lambda value, asked, *rest: _enum(value, [asked], *rest),
    "pattern": _check("string", lambda text, asked: re.search(asked, text), "needs to fit"),
    "minLength": _check("string", lambda text, asked: len(text) >= asked, "needs a length from"),
    "minItems": _check("array", lambda items, asked: len(items) >= asked, "needs a length from"),
    "minimum": _check("number", lambda x, asked: x >= asked, "needs at least"),
    "exclusiveMinimum": _check("number", lambda x, asked: x > asked, "needs more than"),
}
