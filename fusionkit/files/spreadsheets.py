"""What a table that a spreadsheet may open says, and nothing that it would obey."""

import re


def as_cell(text: str) -> str:
    """Quote a text that a spreadsheet would take for a formula; a number stays one. No two texts become the same."""
    # the last four are wide letters, which some read as the others; what is quoted already is quoted once more
    is_formula = re.match(r"'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]", text)
    is_number = re.fullmatch(r"[+-](\d+\.?\d*|\.\d+)(e[+-]?\d+)?", text, re.ASCII)
    return f"'{text}" if is_formula and not is_number else text
