"""Self-contained pages: a template of this folder filled in, with its figures inside."""

from __future__ import annotations

import base64
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined


def render_page(template: str, **values: Any) -> str:
    """HTML of ``template`` (a file of this folder). A name that is used but not given raises."""
    environment = Environment(
        loader=FunctionLoader(_read), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(**values)


def embedded(png: bytes) -> str:
    """A picture as the address that an ``img`` shows."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _read(name: str) -> str:
    return (resources.files("jaxwrap.train.report") / name).read_text(encoding="utf-8")
