"""What a spreadsheet would obey is quoted, and numbers stay what they are."""

import pytest

from fusionkit.files.spreadsheets import as_cell


@pytest.mark.parametrize(
    "text",
    [
        "=1+1",
        "@SUM(A1)",
        "+1+cmd",
        "-cmd",
        "-2+3+cmd|' /C calc'!A0",
        "-3 dogs",
        "-1+1",
        "+1-1e3",
        "-1e",
        "-",
        "\ta",
        "\r=a",
        "\n=a",
        "\uff1d1",
        "'=1",  # or it would be what "=1" becomes
        "''-1",
    ],
)
def test_a_formula_is_quoted(text: str) -> None:
    assert as_cell(text) == f"'{text}"


@pytest.mark.parametrize("text", ["-3", "+1.5e-3", "-1e-05", "-.5", "-2.", "a-b", "a=b", "'a=1", "'", "", "0.5"])
def test_a_number_and_a_text_stay(text: str) -> None:
    assert as_cell(text) == text
