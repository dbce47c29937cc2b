"""What the pages of a run and of a sweep have in common: the document, tables, pictures, configs."""

import base64
import datetime
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import experiments
from lstmx.training import RunRecord, config_differences, config_to_dict
from lstmx.training.terminal import count_of
from scripts.reporting.markup import Markup, join, tag
from scripts.reporting.reading import PICTURES

_HERE = Path(__file__).parent
# A page with larger ones would be slow to open.
_LARGEST_PICTURE = 8 * 2**20


def document(title: str, *content: Any) -> str:
    """A whole page that needs nothing else: no network, no other file.

    Args:
        title: the title of the window.
        *content: what the body holds.

    Returns:
        The text of an HTML file. Its policy lets a browser load nothing and run only the script of its own.
    """
    style = (_HERE / "page.css").read_text(encoding="utf-8")
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    made = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("title", title),
        tag("style", Markup(style)),
    )
    body = tag(
        "body",
        tag("main", *content),
        tag("footer", f"Made on {made} by scripts/report.py."),
        tag("script", Markup(script)),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def header(title: str, subtitle: str, status: str | None, explanation: str) -> Markup:
    """The head of a page; the status, if it is known, is also a class of the style sheet."""
    badge = tag("span", status, class_=f"badge {status}") if status else None
    return tag(
        "header",
        tag("h1", title, " ", badge),
        tag("p", subtitle, " · ", explanation, class_="subtitle"),
    )


def section(title: str, *content: Any) -> Markup:
    """A part of a page under its heading."""
    return tag("section", tag("h2", title), *content)


def note(text: str) -> Markup:
    """A remark in smaller type."""
    return tag("p", text, class_="note")


def tiles(facts: Iterable[tuple[str, Any, str]]) -> Markup:
    """The numbers to see first: (name, value, remark)."""
    return tag(
        "dl",
        *(
            tag("div", tag("dt", name), tag("dd", value), tag("dd", remark, class_="remark"))
            for name, value, remark in facts
        ),
        class_="tiles",
    )


def table(label: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Markup:
    """A plain table, which scrolls in a box of its own where the window is narrow.

    Args:
        label: what it shows, for those who cannot see it.
        columns: the headings.
        rows: the cells of each row, the first of which names it.
    """
    head = tag("thead", tag("tr", *(tag("th", name, scope="col") for name in columns)))
    body = tag(
        "tbody",
        *(
            tag("tr", tag("th", name, scope="row"), *(tag("td", cell) for cell in cells))
            for name, *cells in rows
        ),
    )
    # Without headings it is a list of names and values.
    return scrolling(label, tag("table", head, body) if columns else tag("table", body, class_="facts"))


def scrolling(label: str, content: Markup) -> Markup:
    """A box that scrolls by itself, with the keyboard too."""
    return tag("div", content, class_="scroll", role="region", aria_label=label, tabindex=0)


def gallery(pictures: Sequence[Path]) -> Markup | None:
    """Pictures in the page itself; None if there are none.

    An SVG file is embedded as an image too: what it may hold of scripts is not run.
    """
    if not pictures:
        return None
    shown = [path for path in pictures if path.stat().st_size <= _LARGEST_PICTURE]
    figures = [
        tag("figure", tag("figcaption", path.stem), tag("img", src=_data_uri(path), alt=path.stem))
        for path in shown
    ]
    left_out = [path.name for path in pictures if path not in shown]
    text = f"Too large to be shown here: {', '.join(left_out)}." if left_out else None
    return join(tag("div", *figures, class_="gallery"), note(text) if text else None)


def _data_uri(path: Path) -> str:
    return f"data:{PICTURES[path.suffix.lower()]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def config_cards(experiment: str, config: Mapping[str, Any]) -> Markup:
    """A config, its nested parts in cards, with what differs from the default of its experiment marked.

    Args:
        experiment: the experiment's name, or the path of its file.
        config: the config as a dict.
    """
    try:
        default = config_to_dict(experiments.load(experiment).Config())
    except Exception as error:  # a file of the user's own may fail in any way
        differences, remark = {}, f"What differs from the default is not known: {error}"
    else:
        differences = config_differences(default, config)
        differing = count_of(sum(path in differences for path in _names(config)), "field")
        remark = f"Marked where it differs from the default of the experiment: {differing}."
    plain = {name: value for name, value in config.items() if not isinstance(value, Mapping)}
    nested = {name: value for name, value in config.items() if isinstance(value, Mapping)}
    cards = [_card("", plain, differences)] if plain else []
    cards += [_card(name, values, differences) for name, values in nested.items()]
    return join(note(remark), tag("div", *cards, class_="cards"))


def _names(config: Mapping[str, Any], prefix: str = "") -> Iterable[str]:
    """The dotted names of all fields, nested parts among them."""
    for name, value in config.items():
        yield prefix + name
        if isinstance(value, Mapping):
            yield from _names(value, f"{prefix}{name}.")


def _card(name: str, values: Mapping[str, Any], differences: Mapping[str, tuple[Any, Any]]) -> Markup:
    prefix = f"{name}." if name else ""
    heading = tag("h3", name, _default(differences.get(name))) if name else None
    return tag("div", heading, tag("dl", *_fields(values, prefix, 0, differences)), class_="card")


def _fields(
    values: Mapping[str, Any], prefix: str, depth: int, differences: Mapping[str, tuple[Any, Any]]
) -> Iterable[Markup]:
    for name, value in values.items():
        difference = differences.get(prefix + name)
        nested = isinstance(value, Mapping)
        yield tag(
            "div",
            tag("dt", name, style=f"padding-left:{depth}em" if depth else None),
            tag("dd", None if nested else shown(value), _default(difference)),
            class_="changed" if difference else None,
        )
        if nested:
            yield from _fields(value, f"{prefix}{name}.", depth + 1, differences)


def _default(difference: tuple[Any, Any] | None) -> Markup | None:
    """The default of a field that has another value."""
    return None if difference is None else tag("small", f"default {shown(difference[0])}")


def shown(value: Any) -> str:
    """A value of a config as people write it.

    Example:
        >>> shown(None), shown(True), shown([1, 2]), shown(0.001), shown("")
        ('none', 'true', '1, 2', '0.001', '""')
    """
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ", ".join(map(shown, value)) if value else "none"
    return '""' if value == "" else str(value)


def environment(record: RunRecord) -> Markup:
    """What a run was started with."""
    rows = [("experiment", record.experiment), ("git commit", record.git or "not known")]
    if record.init_from:
        rows.append(("started from the weights of", record.init_from))
    return table("Environment", (), [*rows, *record.versions.items()])
