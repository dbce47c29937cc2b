"""HTML and SVG from nested calls, in which every text is escaped unless it is markup already."""

import html
import re
from typing import Any

# Characters that HTML has no place for, and halves of pairs, which UTF-8 has no bytes for.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
_EMPTY = frozenset({"meta", "img", "line", "circle", "path", "rect", "col"})


class Markup(str):
    """Text that is markup already, so that `tag` does not escape it."""

    __slots__ = ()


def escape(text: Any) -> Markup:
    """Any value as text that shows what it says, in an element or in an attribute.

    Example:
        >>> escape("<script>"), escape(1.5), escape(Markup("<b>"))
        ('&lt;script&gt;', '1.5', '<b>')
    """
    if isinstance(text, Markup):
        return text
    return Markup(html.escape(_UNPRINTABLE.sub("\ufffd", str(text))))


def tag(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """An element.

    Args:
        name: its name.
        *children: markup, and values that are shown as text; None is left out.
        **attributes: `class_` stands for class and `data_value` for data-value; None and False leave an
            attribute out, True writes its name alone.

    Example:
        >>> tag("p", "a < b", tag("b", "!"), class_="note", hidden=False)
        '<p class="note">a &lt; b<b>!</b></p>'
    """
    opening = [name]
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            opening.append(key)
        elif value is not None and value is not False:
            opening.append(f'{key}="{escape(value)}"')
    start = f"<{' '.join(opening)}>"
    if name in _EMPTY:
        return Markup(start[:-1] + "/>")
    return Markup(f"{start}{join(*children)}</{name}>")


def join(*parts: Any) -> Markup:
    """Markup and texts one after another; None is left out.

    Example:
        >>> join("1 < 2", None, tag("b", "!"))
        '1 &lt; 2<b>!</b>'
    """
    return Markup("".join(escape(part) for part in parts if part is not None))
