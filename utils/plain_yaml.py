"""The subset of YAML that a config needs: mappings, lists, strings, numbers, booleans, null.

Follows YAML 1.2: 2e-4 is a number, and yes, 1:30, 010 and 2024-01-01 are strings. (PyYAML follows YAML 1.1, which
reads them as a string, true, 90, 8 and a date.) Keys are strings. Tags such as !!python/object, duplicate keys and keys
that are not names are errors.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from utils.errors import UserError


def parse_yaml(text: str, source: str) -> Any:
    """Parse a YAML text. Raises UserError, with `source` and the position, if it is not valid."""
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{source}{where}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:  # a character that is not allowed
        raise UserError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise UserError(f"{source}: not valid YAML: nested too deeply") from None
    except ValueError:  # int() limits the number of digits
        raise UserError(f"{source}: not valid YAML: a number with thousands of digits") from None


def format_yaml(tree: dict[str, Any]) -> str:
    """Format nested dicts of plain values as YAML that `parse_yaml` and any other parser read back unchanged."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, default_flow_style=None, allow_unicode=True, width=1000)


class _Loader(yaml.SafeLoader):
    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if getattr(event, "tag", None):
            raise _fault(f"the tag {event.tag!r} is not supported", event)
        return super().compose_node(parent, index)

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise _fault(f"the key {key.value!r} is given twice", key)
            seen.add(key.value)
            if not re.fullmatch(r"[\w-]+|<<", key.value):
                raise _fault(f"the key {key.value!r} is not a name", key)
            if key.value != "<<":
                key.tag = "tag:yaml.org,2002:str"  # 1 and null, too
        return node


def _fault(problem: str, place: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=place.start_mark)


class _Dumper(yaml.SafeDumper):
    """Quotes strings that this or another YAML parser would not read as strings."""


_DIGITS = "[0-9][0-9_]*"
_FLOAT = (
    rf"[-+]?({_DIGITS}\.[0-9_]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?{_DIGITS}[eE][-+]?[0-9]+"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
# Types of unquoted scalars, with their possible first characters. They replace PyYAML's own.
_Loader.yaml_implicit_resolvers = {}
for _kind, _pattern, _first_characters in (
    ("null", "~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", "true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", "[-+]?(0|[1-9][0-9_]*)", list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
    ("merge", "<<", ["<"]),
):
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"(?:{_pattern})$"), _first_characters)
