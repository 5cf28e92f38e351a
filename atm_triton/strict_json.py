"""JSON as the standard has it: each name once in an object, and written without Python's NaN and Infinity, at which other readers stop."""

from __future__ import annotations

import json
import math
import reprlib
from collections import Counter
from collections.abc import Mapping
from typing import Any


def loads(text: str | bytes) -> Any:
    """``json.loads`` that refuses a name given twice in one object, of which it would keep the last.

    Raises:
        ValueError: this, or it is no JSON.
    """
    return json.loads(text, object_pairs_hook=_each_once)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        name, count = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"{reprlib.repr(name)} is given {'twice' if count == 2 else f'{count} times'} in one object")
    return found


def dumps(content: Any, **options: Any) -> str:
    """``json.dumps`` with null for numbers that are not finite."""
    return json.dumps(finite(content), allow_nan=False, **options)


def finite(content: Any) -> Any:
    """The same without such numbers."""
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {name: finite(value) for name, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [finite(value) for value in content]
    return content
