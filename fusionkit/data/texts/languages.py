"""Which languages texts are most probably in: by their letters, and in Latin letters by words that no sentence does without."""

import unicodedata
from collections import Counter
from collections.abc import Sequence

SCRIPTS = {  # how Unicode's names of letters begin
    "CJK": "Chinese",
    "HIRAGANA": "Japanese",
    "KATAKANA": "Japanese",
    "HANGUL": "Korean",
    "CYRILLIC": "Russian or another in Cyrillic",
    "ARABIC": "Arabic or another in its letters",
    "HEBREW": "Hebrew",
    "GREEK": "Greek",
    "THAI": "Thai",
    "DEVANAGARI": "Hindi or another in Devanagari",
    "BENGALI": "Bengali",
}
WORDS = {  # of languages in Latin letters, words that are frequent in these alone
    "English": "the is are with and what of how many there does a an in on at his her",
    "Vietnamese": "của là gì trong một có bao nhiêu màu những người đang",
    "German": "der die das und ist ein eine mit auf wie viele",
    "French": "le les des est une dans sur avec quelle combien",
    "Spanish": "el los las una con hay cuántos qué está del",
    "Portuguese": "o os um uma com em são não do da",
    "Italian": "il gli uno della che di sono è nel quanti",
    "Dutch": "het een van op met zijn hoeveel wat op de",
    "Indonesian": "yang dan di adalah sebuah dengan apa berapa ada",
    "Polish": "jest na się i w ile czy jaki oraz",
    "Turkish": "bir ve bu kaç ne var için üzerinde",
}
LOOKED_AT = 2000  # texts


def languages_of(texts: Sequence[str]) -> dict[str, float]:
    """By language its share of the texts, the most frequent first; of a text that no word tells it is "unknown"."""
    looked_at = texts[:: max(1, len(texts) // LOOKED_AT)]
    counts = Counter(map(language_of, looked_at))
    return {language: count / len(looked_at) for language, count in counts.most_common()}


def language_of(text: str) -> str:
    """The most probable language of one text."""
    letters = Counter(unicodedata.name(letter, "?").split()[0] for letter in text if letter.isalpha())
    if "HIRAGANA" in letters or "KATAKANA" in letters:  # beside Chinese characters
        return SCRIPTS["HIRAGANA"]
    script = letters.most_common(1)[0][0] if letters else "?"
    if script != "LATIN":
        return SCRIPTS.get(script, "unknown")
    words = [word.strip(".,!?;:\"'()") for word in text.lower().split()]
    hits = {language: sum(word in known.split() for word in words) for language, known in WORDS.items()}
    best = max(hits, key=lambda language: hits[language])
    return best if hits[best] else "unknown"
