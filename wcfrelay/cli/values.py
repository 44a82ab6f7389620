"""Arguments from a command line as an operation's values, and results as text.

``name=value`` gives a value as text; for a complex type, or for several at once, ``value`` is JSON. The types of the
WSDL decide what a text means, so numbers in JSON keep their digits.
"""

# zeep is typed in part only.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import base64
import datetime
import difflib
import json
from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import Any

from lxml import etree
from zeep import xsd
from zeep.helpers import serialize_object
from zeep.xsd import AnySimpleType

__all__ = ["ArgumentError", "arguments", "as_json", "as_text", "nearest", "types_of"]


class ArgumentError(Exception):
    """An argument does not fit the operation; the text names it."""


def nearest(name: str, known: Iterable[str]) -> str:
    """What to say after "there is no such …": the name that was meant, or all of them."""
    names = list(known)
    lowered = {each.lower(): each for each in names}
    close = difflib.get_close_matches(name.lower(), lowered, 1)
    if close:
        return f"did you mean {lowered[close[0]]}?"
    return f"there are {', '.join(names)}" if names else "there are none"


# -- arguments


def arguments(operation: Any, given: Iterable[str]) -> dict[str, Any]:
    """The keyword arguments for a zeep operation from ``name=value`` texts; a name may come several times for a list.

    :raises ArgumentError: a text is no ``name=value``, a name is unknown, or a value does not fit its type.
    """
    fields = _fields(operation.input.body.type) if operation.input.body is not None else {}
    texts: dict[str, list[str]] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise ArgumentError(f"{text!r} is not name=value")
        if name not in fields:
            raise ArgumentError(f"{operation.name} has no argument {name!r}; {nearest(name, fields)}")
        texts.setdefault(name, []).append(value)
    result: dict[str, Any] = {}
    for name, values in texts.items():
        kind, several = fields[name]
        parsed = [_parsed(kind, several, value, name) for value in values]
        if len(parsed) > 1 and not several:
            raise ArgumentError(f"{name} is given {len(parsed)} times and can be given once")
        if len(parsed) > 1:
            parsed = [item for each in parsed for item in (each if isinstance(each, list) else [each])]
        result[name] = _member(kind, several, parsed if len(parsed) > 1 else parsed[0], name)
    return result


_Field = tuple[Any, bool]
"""(type, whether it may come several times); the type None takes JSON as zeep documents it."""


def _fields(kind: Any) -> dict[str, _Field]:
    """The members of a type by name."""
    if not isinstance(kind, xsd.ComplexType):
        return {"value": (kind, False)}
    fields: dict[str, _Field] = {name: (None, False) for name, each in kind.elements_nested if each.accepts_multiple}
    for name, element in kind.elements:
        fields[name] = (element.type, element.accepts_multiple) if isinstance(element, xsd.Element) else (None, False)
    return fields | {name: (each.type, False) for name, each in kind.attributes if isinstance(each, xsd.Attribute)}


def _parsed(kind: Any, several: bool, text: str, where: str) -> Any:
    """The JSON in a text where there has to be JSON, else the text."""
    if not (kind is None or isinstance(kind, xsd.ComplexType) or (several and text.startswith("["))):
        return text
    try:
        return json.loads(text, parse_int=str, parse_float=str, parse_constant=str)
    except ValueError:
        raise ArgumentError(f'{where} takes JSON, such as {where}={{"name": "value"}}; this is none: {text}') from None


def _member(kind: Any, several: bool, given: Any, where: str) -> Any:
    if not several:
        return _value(kind, given, where)
    items = given if isinstance(given, list) else [given]
    return [_value(kind, item, where) for item in items]


def _value(kind: Any, given: Any, where: str) -> Any:
    if given is None or kind is None:
        return given
    if isinstance(kind, xsd.ComplexType):
        return _members(kind, given, where)
    if isinstance(given, (dict, list)):
        raise ArgumentError(f"{where} takes one value, not {json.dumps(given)}")
    text = {True: "true", False: "false"}[given] if isinstance(given, bool) else str(given)
    if not isinstance(kind, AnySimpleType):
        return text  # xsd:anyType
    try:
        if isinstance(kind, xsd.Boolean) and text.strip() not in ("true", "false", "1", "0"):
            raise ValueError  # zeep would take it for false
        if isinstance(kind, xsd.Base64Binary):
            return base64.b64decode("".join(text.split()), validate=True)  # zeep would drop what is none
        value = kind.pythonvalue(text)
    except (ValueError, ArithmeticError, TypeError):
        name = etree.QName(kind.qname).localname if kind.qname is not None else type(kind).__name__
        raise ArgumentError(f"{where} takes {name}, which {text!r} is not") from None
    return text if isinstance(value, float) else value  # zeep writes infinity in a way that XML does not know


def _members(kind: Any, given: Any, where: str) -> dict[str, Any]:
    fields = _fields(kind)
    arrays = [name for name, (_, several) in fields.items() if several]
    if isinstance(given, list) and len(arrays) == 1:
        given = {arrays[0]: given}  # a type that only wraps a list
    if not isinstance(given, dict):
        raise ArgumentError(f"{where} takes a JSON object with {', '.join(fields) or 'no members'}")
    result = {}
    for name, item in given.items():
        if name not in fields:
            raise ArgumentError(f"{where} has no member {name!r}; {nearest(name, fields)}")
        result[name] = _member(*fields[name], item, f"{where}.{name}")
    return result


def types_of(operations: Iterable[Any], schema: Any) -> list[str]:
    """The signatures of the named complex types in these operations' messages, in the order they are met."""
    found: dict[str, str] = {}

    def visit(kind: Any) -> None:
        if not isinstance(kind, xsd.ComplexType):
            return
        if kind.is_global and kind.qname is not None:
            if kind.qname.text in found:
                return
            found[kind.qname.text] = kind.signature(schema)
        for member, _ in _fields(kind).values():
            visit(member)

    for operation in operations:
        for message in (operation.input, operation.output):
            if message is not None and message.body is not None:
                for member, _ in _fields(message.body.type).values():
                    visit(member)
    return list(found.values())


# -- results


def as_json(result: Any) -> str:
    return json.dumps(serialize_object(result, dict), ensure_ascii=False, indent=2, default=_scalar)


def as_text(result: Any) -> str:
    """A scalar as it is, everything else as indented lines; "" for nothing."""
    return "\n".join(_lines(serialize_object(result, dict)))


def _lines(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for name, item in value.items():
            first, *rest = [*_lines(item)] or [""]
            if isinstance(item, (dict, list)) or rest:
                yield f"{name}:"
                yield from (f"  {line}" for line in [first, *rest] if line)
            else:
                yield f"{name}: {first}".rstrip()
    elif isinstance(value, list):
        for item in value:
            first, *rest = [*_lines(item)] or [""]
            yield f"- {first}".rstrip()
            yield from (f"  {line}" for line in rest)
    else:
        yield from _scalar(value).split("\n") if value is not None else ()


_DURATIONS = tuple(kind for kind in xsd.Duration.accepted_types if kind is not str)


def _scalar(value: Any) -> str:
    """A simple value in the form that XML has for it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, _DURATIONS):
        return str(xsd.Duration().xmlvalue(value))
    if isinstance(value, etree._Element):
        return etree.tostring(value, encoding="unicode", pretty_print=True).rstrip()
    return str(value)
