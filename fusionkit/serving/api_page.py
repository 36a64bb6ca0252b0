"""The API as a page that needs nothing from elsewhere: made of the same OpenAPI document as ``/openapi.json``."""

import json
from collections.abc import Mapping
from html import escape
from typing import Any


def api_page(document: Mapping[str, Any]) -> str:
    """HTML of all paths, with the fields of their requests."""
    parts = [_path(path, method, what) for path, ways in document["paths"].items() for method, what in ways.items()]
    info = document["info"]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(info["title"])}: API</title><link rel="icon" href="/icon.svg"><link rel="stylesheet" href="/page.css">'
        "</head><body><main>"
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{escape(info['description'])}</p>"
        '<p><a href="/">Ask with pictures</a>, or read <a href="/openapi.json">openapi.json</a>.</p>'
        f"{''.join(parts)}</main></body></html>"
    )


def _path(path: str, method: str, what: Mapping[str, Any]) -> str:
    schema = what.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    wanted = schema.get("required", ())
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code></td><td>{escape(_type(field))}{', needed' * (name in wanted)}</td>"
        f"<td>{escape(str(field.get('description', '')))}</td></tr>"
        for name, field in schema.get("properties", {}).items()
    )
    head = '<tr><th scope="col">field</th><th scope="col">type</th><th scope="col">meaning</th></tr>'
    table = f'<div class="scroll"><table>{head}{rows}</table></div>' if rows else ""
    title = f"<h2><code>{escape(method.upper())} {escape(path)}</code></h2>"
    return f"<section>{title}<p>{escape(str(what.get('summary', '')))}</p>{table}</section>"


def _type(field: Mapping[str, Any]) -> str:
    kinds = [each.get("type", "") for each in field.get("anyOf", [field])]
    bounds = [f"{word} {field[key]:g}" for key, word in (("minimum", "from"), ("maximum", "to")) if key in field]
    default = field.get("default")
    told = [" or ".join(kind for kind in kinds if kind != "null"), *bounds]
    return ", ".join([*told, *([f"default {json.dumps(default)}"] if default not in (None, "") else [])])
