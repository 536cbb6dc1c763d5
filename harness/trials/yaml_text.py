"""YAML that a user writes, on boards and in options: plain data in which no mapping has a key twice.

value("{samples: 16}", "--set calibration: ")  # {"samples": 16}
"""

from __future__ import annotations

from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from harness.types import InputError


class _Loader(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """A mapping as it is written: later `<<` adds keys to it, which may stand there already."""
        node = super().compose_mapping_node(anchor)
        known = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if (key.tag, key.value) in known:
                text = f"give the key {key.value!r:.80} once: it stands a second time"
                raise ComposerError(None, None, text, key.start_mark)
            known.add((key.tag, key.value))
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, ValueError) as error:  # PyYAML's, as on `!!bool x`
            text = f"{node.value!r:.80} is no {node.tag.rpartition(':')[2]}"
            raise ConstructorError(None, None, text, node.start_mark) from error


def value(text: str, where: str) -> Any:
    """The value of a text in YAML. Raises InputError, which begins with `where`, for what is none or repeats a key."""
    try:
        return yaml.load(text, _Loader)  # nosec
    except (yaml.YAMLError, RecursionError) as error:
        raise InputError(f"{where}not YAML: {' '.join(str(error).split())}") from error
