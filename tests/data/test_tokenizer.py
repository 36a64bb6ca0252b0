import unicodedata

import pytest

from fusionkit.data.tokenizer import build_tokenizer, load_tokenizer, word_tokenizer
from fusionkit.errors import ConfigError

TEXTS = ["A red Square, left of the blue circle.", "Is a square red?"]


def test_a_built_tokenizer_works_like_berts(tmp_path):
    build_tokenizer(TEXTS, tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert [tokenizer.convert_tokens_to_ids(token) for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")] == [
        0,
        1,
        2,
        3,
        4,
    ]
    encoded = tokenizer(["A RED, square", "unheard-of red"], padding=True)
    assert [tokenizer.convert_ids_to_tokens(row) for row in encoded["input_ids"]] == [
        ["[CLS]", "a", "red", ",", "square", "[SEP]"],
        ["[CLS]", "[UNK]", "[UNK]", "of", "red", "[SEP]"],
    ]
    assert encoded.word_ids(0) == [None, 0, 1, 2, 3, None]
    assert set(encoded) == {"input_ids", "attention_mask"}


def test_equal_texts_give_equal_files(tmp_path):
    build_tokenizer(TEXTS, tmp_path / "a")
    build_tokenizer(reversed(TEXTS), tmp_path / "b")
    assert (tmp_path / "a/tokenizer.json").read_bytes() == (tmp_path / "b/tokenizer.json").read_bytes()


def test_what_is_no_tokenizer_is_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match=r"holds neither tokenizer.json nor vocab.txt"):
        load_tokenizer(tmp_path)
    with pytest.raises(ConfigError, match="'nobody/nothing' is neither a tokenizer folder nor the name"):
        load_tokenizer("nobody/nothing")
    build_tokenizer(TEXTS, tmp_path)
    config = tmp_path / "tokenizer_config.json"
    config.write_text("\n".join(line for line in config.read_text().splitlines() if "mask_token" not in line))
    with pytest.raises(ConfigError, match="has no mask token; choose a BERT-like tokenizer"):
        load_tokenizer(tmp_path)


def tokens(tokenizer, text):
    return tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_a_built_tokenizer_keeps_the_marks_of_letters():
    words = ["bò", "bơ", "bỏ", "bo", "đỏ", "đo", "für", "fur", "straße", "élan", "रंग", "كِتاب", "كتاب"]
    tokenizer = word_tokenizer(words)
    for word in words:
        assert tokens(tokenizer, word) == [word]
        assert tokens(tokenizer, unicodedata.normalize("NFD", word).upper().replace("STRASSE", "STRAẞE")) == [word]
        assert tokenizer.decode(tokenizer(word)["input_ids"], skip_special_tokens=True) == word
    assert word_tokenizer([unicodedata.normalize("NFD", word) for word in words]).get_vocab() == tokenizer.get_vocab()


def test_where_words_have_no_spaces_between_them_letters_are_words():
    texts = ["红色的圆", "赤いまる", "สีแดง ที่นี่", "a red 円"]
    tokenizer = word_tokenizer(texts)
    assert tokens(tokenizer, "的红圆") == ["的", "红", "圆"]
    assert tokens(tokenizer, "るい") == ["る", "い"]
    assert tokens(tokenizer, "แดงที่") == ["แ", "ด", "ง", "ที่"]
    assert tokens(tokenizer, "red円") == ["red", "円"]


def test_broken_characters_are_read(tmp_path):
    tokenizer = word_tokenizer(["so happy \ud83d", "nul\0 here"])
    assert tokens(tokenizer, "happy so here") == ["happy", "so", "here"]
    assert not [token for token in tokenizer.get_vocab() if not token.isascii()]


def test_a_written_tokenizer_reads_other_scripts_as_the_built_one(tmp_path):
    texts = ["con bò màu đỏ", "红色的圆", "สีแดง", "a red cat"]
    build_tokenizer(texts, tmp_path)
    built, loaded = word_tokenizer(texts), load_tokenizer(tmp_path)
    for text in (*texts, unicodedata.normalize("NFD", texts[0]).upper()):
        assert loaded(text)["input_ids"] == built(text)["input_ids"]
        assert built.unk_token_id not in built(text)["input_ids"]
