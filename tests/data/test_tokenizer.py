import json
import unicodedata

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from fusionkit.data.tokenizer import build_tokenizer, load_tokenizer, panics, text_format, word_tokenizer, wrapped
from fusionkit.errors import ConfigError, DataError
from fusionkit.types import TextFormat

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


def changed(folder, change):
    """The folder of a built tokenizer with its tokenizer.json changed."""
    build_tokenizer(TEXTS, folder)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return folder


def replaced(times, by="aaaaaaaaaa"):
    step = {"type": "Replace", "pattern": {"String": "a"}, "content": by}
    return {"type": "Sequence", "normalizers": [step] * times}


@pytest.mark.parametrize("part", ["normalizer", "decoder"])
def test_a_text_that_grows_without_end_is_refused(part, tmp_path):
    name = {"normalizer": "normalizers", "decoder": "decoders"}[part]
    few, many = ({"type": "Sequence", name: replaced(times)["normalizers"]} for times in (4, 5))
    assert load_tokenizer(changed(tmp_path / "few", lambda content: content.update({part: few})))
    with pytest.raises(DataError, match=r"tokenizer.json of '.*many' puts .* may grow 1e\+05 times; take another"):
        load_tokenizer(changed(tmp_path / "many", lambda content: content.update({part: many})))
    removed = {"type": "Sequence", name: replaced(1, by="")["normalizers"] + many[name]}
    with pytest.raises(DataError, match="may grow"):
        load_tokenizer(changed(tmp_path / "removed", lambda content: content.update({part: removed})))


def test_a_library_that_gives_up_is_a_sentence(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot spell every text \(no entry found for key\)"):
        load_tokenizer(changed(tmp_path, lambda content: content["post_processor"].update(special_tokens={})))
    with pytest.raises(KeyboardInterrupt), panics():
        raise KeyboardInterrupt


@pytest.mark.parametrize("text", ["a", "A", "1", " ", "!"])
def test_a_regex_that_goes_astray_is_refused_before_anything_is_read_with_it(text, tmp_path):
    split = {"type": "Split", "pattern": {"Regex": f"^(([{text}])+.)+Z$"}, "behavior": "Isolated", "invert": False}
    steps = {"normalizer": None, "pre_tokenizer": split}
    with pytest.raises(ConfigError, match=r"cannot spell every text \(.*retry-limit-in-match over\)"):
        load_tokenizer(changed(tmp_path, lambda content: content.update(steps)))


def test_what_is_tried_is_not_told_to_be_too_long_for_the_model(tmp_path):
    build_tokenizer(TEXTS, tmp_path)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_max_length": 32}))
    assert load_tokenizer(tmp_path).deprecation_warnings == {}


def test_more_added_tokens_than_can_be_added_are_refused(tmp_path, monkeypatch):
    def add(content):
        token = content["added_tokens"][0]
        more = [token | {"id": 100 + number, "content": f"<{number}>"} for number in range(95)]
        content["added_tokens"] += more

    monkeypatch.setattr("fusionkit.data.tokenizer.MOST_ADDED", 100)
    folder = changed(tmp_path, add)
    assert len(load_tokenizer(folder).added_tokens_decoder) == 100
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"].append(content["added_tokens"][-1] | {"id": 500, "content": "<more>"})
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="adds 101 tokens to its vocabulary"):
        load_tokenizer(folder)
    build_tokenizer(TEXTS, folder)
    file = folder / "tokenizer_config.json"
    token = {"content": "<x>", "special": False}
    file.write_text(
        json.dumps(json.loads(file.read_text()) | {"added_tokens_decoder": {100 + n: token for n in range(101)}})
    )
    with pytest.raises(DataError, match="adds 101 tokens to its vocabulary"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (
            {"model_type": "siglip", "initializer_factor": "1"},
            "Validation error for field 'initializer_factor': TypeError",
        ),
        ({"model_type": ["siglip"]}, "unhashable type"),
    ],
)
def test_a_model_s_configuration_beside_it_is_named_where_it_is_at_fault(config, reason, tmp_path):
    build_tokenizer(TEXTS, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    file = tmp_path / "tokenizer_config.json"
    said = json.loads(file.read_text())
    del said["tokenizer_class"]
    file.write_text(json.dumps(said))
    with pytest.raises(DataError, match=rf"^tokenizer: {tmp_path}/config\.json cannot be read \({reason}"):
        load_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip"}))
    file.write_text("[")
    with pytest.raises(DataError, match=rf"^tokenizer: {file} cannot be read"):
        load_tokenizer(tmp_path)


def test_what_a_tokenizer_gives_is_what_is_read(tmp_path):
    build_tokenizer(TEXTS, tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_input_names": ["input_ids", "token_type_ids"]}))
    assert set(load_tokenizer(tmp_path)(TEXTS)) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize("longest", ["512", [512], True])
def test_a_longest_text_that_is_no_number_is_told(longest, tmp_path):
    build_tokenizer(TEXTS, tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": longest}))
    with pytest.raises(
        DataError, match=r"model_max_length in tokenizer_config.json of '.*' is .*, but has to be a number"
    ):
        load_tokenizer(tmp_path)


def model_of(kind):
    """A small model of one kind of tokenizer, trained on a few words, and its special tokens in the order of their ids."""
    words = ["a red circle left of a blue square", "two dogs"] * 5
    if kind == "word":
        vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", "a", "red"])}
        return Tokenizer(models.WordLevel(vocabulary))
    if kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=60, special_tokens=["<pad>", "<s>", "</s>", "<unk>"], unk_token="<unk>"
        )
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer, tokenizer.decoder = (
            pre_tokenizers.ByteLevel(add_prefix_space=False),
            decoders.ByteLevel(),
        )
        trainer = trainers.BpeTrainer(
            special_tokens=["<pad>", "<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        )
    tokenizer.train_from_iterator(words, trainer)
    return tokenizer


def foreign(kind, template=None, **special):
    tokenizer = model_of(kind)
    if template:
        ids = [(token, tokenizer.token_to_id(token)) for token in {"<s>", "</s>"} & set(template.split())]
        tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", **special)


GPT2 = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>"}
LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


@pytest.mark.parametrize(
    ("tokenizer", "start", "pad"),
    [
        (foreign("bytes", **GPT2), "</s>", "</s>"),
        (foreign("bytes", eos_token="</s>", pad_token="<pad>"), "</s>", "<pad>"),  # Qwen
        (foreign("bytes", "<s> $A </s>", bos_token="<s>", eos_token="</s>", pad_token="</s>"), "<s>", "</s>"),  # CLIP
        (foreign("unigram", "<s> $A", **LLAMA), "<s>", "</s>"),
        (foreign("unigram", "$A </s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"), "</s>", "<pad>"),  # T5
        (
            foreign("unigram", "$A </s> <s>", cls_token="<s>", sep_token="</s>", unk_token="<unk>"),
            "<s>",
            "</s>",
        ),  # XLNet
        (foreign("unigram", "<s> <s> $A </s>", **LLAMA), "<s>", "</s>"),
    ],
)
def test_texts_are_wrapped(tokenizer, start, pad, tmp_path):
    wrapped(tokenizer).save_pretrained(tmp_path)
    for again in (tokenizer, load_tokenizer(tmp_path)):
        words = text_format(again)
        assert again.convert_ids_to_tokens([words.start, words.end, words.pad]) == [start, "</s>", pad]
        assert words.mask is None
        plain = again("two dogs", add_special_tokens=False)["input_ids"]
        assert len(plain) > 1
        rows = again(["two dogs", ""], padding=True)
        assert rows["input_ids"][0] == [words.start, *plain, words.end]
        assert rows["input_ids"][1] == [words.start, words.end, *[words.pad] * len(plain)]
        assert rows.word_ids(0)[0] is rows.word_ids(0)[-1] is None
        assert None not in rows.word_ids(0)[1:-1]
        assert again("two dogs", truncation=True, max_length=3)["input_ids"] == [words.start, plain[0], words.end]


def test_a_text_is_wrapped_in_what_the_tokenizer_puts_there():
    """Names are not asked where one token stands on either side (NLLB's language in place of its cls)."""
    tokenizer = wrapped(foreign("unigram", "<s> $A </s>", cls_token="<pad>", eos_token="</s>", unk_token="<unk>"))
    assert tokenizer.convert_ids_to_tokens(tokenizer("a")["input_ids"])[0] == tokenizer.cls_token == "<s>"


def test_a_tokenizer_that_cannot_wrap_or_spell_is_refused():
    with pytest.raises(ConfigError, match="tokenizer: 'mine' has no token that ends a text"):
        wrapped(foreign("unigram", unk_token="<unk>"), "mine")
    with pytest.raises(ConfigError, match="'mine' cannot spell every text"):
        wrapped(foreign("word", eos_token="</s>"), "mine")
    stubborn = foreign("unigram", eos_token="</s>", unk_token="<unk>")
    stubborn.__class__ = type("Stubborn", (type(stubborn),), {"__call__": lambda self, text, **_: Plain()})
    with pytest.raises(ConfigError, match="'mine' does not put a token before and behind"):
        wrapped(stubborn, "mine")
    slow = foreign("unigram", eos_token="</s>", unk_token="<unk>")
    slow.__class__ = type("Slow", (type(slow),), {"is_fast": False})
    with pytest.raises(ConfigError, match="'mine' is not a fast tokenizer"):
        wrapped(slow, "mine")


class Plain(dict):
    """What a tokenizer gives that wraps nothing."""

    def __init__(self):
        super().__init__(input_ids=[5], special_tokens_mask=[0])


def test_a_mask_that_is_another_special_token_is_none():
    tokenizer = word_tokenizer(TEXTS)
    assert text_format(tokenizer) == TextFormat(2, 3, 0, 4, 1)
    tokenizer.mask_token = "[UNK]"
    assert text_format(tokenizer).mask == 1
    for token in ("[CLS]", "[SEP]", "[PAD]"):
        tokenizer.mask_token = token
        assert text_format(tokenizer).mask is None


def test_whether_padding_has_a_token_of_its_own():
    assert TextFormat(2, 3, 0, 4, 1).pads_alone
    assert TextFormat(2, 3, 0).pads_alone
    for pad in (2, 3, 1):
        assert not TextFormat(2, 3, pad, 4, 1).pads_alone


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
