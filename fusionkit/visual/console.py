"""What a terminal or a notebook can show."""

from importlib.util import find_spec

from rich.console import Console


def can_redraw(console: Console) -> bool:
    """Whether a live display can change what it has shown: on a terminal, and in a notebook that has ipywidgets."""
    return find_spec("ipywidgets") is not None if console.is_jupyter else console.is_terminal
