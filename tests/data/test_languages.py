import pytest

from fusionkit.data.texts.languages import language_of, languages_of


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("how many dogs are there?", "English"),
        ("màu của chiếc áo là gì", "Vietnamese"),
        ("der Hund und die Katze", "German"),
        ("combien de chiens dans la rue", "French"),
        ("cuántos perros hay", "Spanish"),
        ("図に何がありますか", "Japanese"),
        ("图中有几只狗", "Chinese"),
        ("여기 무엇", "Korean"),
        ("сколько собак", "Russian or another in Cyrillic"),
        ("xyzzy", "unknown"),
        ("123 ?", "unknown"),
    ],
)
def test_languages_are_told_by_letters_and_words(text, language):
    assert language_of(text) == language


def test_shares_are_of_all_texts():
    assert languages_of(["the dog", "the cat", "der Hund", "xyzzy"]) == {
        "English": 0.5,
        "German": 0.25,
        "unknown": 0.25,
    }
    assert sum(languages_of(["the dog"] * 5000).values()) == 1
