"""What a table that a spreadsheet may open says, and nothing that it would obey."""

import re


def as_cell(text: str) -> str:
    """Quote a text that a spreadsheet would take for a formula; a number stays one."""
    is_formula = re.match(r"[=+\-@\t\r]", text) and not re.fullmatch(r"[+-][\d.e+-]+", text)
    return f"'{text}" if is_formula else text
