import pytest

from fusionkit.data.tokenizer import build_tokenizer, load_tokenizer
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
    encoded = tokenizer(["A RED, squáre", "unheard-of red"], padding=True)
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
