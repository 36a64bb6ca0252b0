"""Tokenizers: a published one by name or directory, or a word-level one built from a data set's own texts."""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import NFC, BertNormalizer, Sequence
from tokenizers.pre_tokenizers import BertPreTokenizer, Split
from tokenizers.pre_tokenizers import Sequence as Splits
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from fusionkit.config import leaves
from fusionkit.errors import ConfigError, DataError, UserError
from fusionkit.files.names import is_file_name
from fusionkit.files.plain import read_json, reason_of
from fusionkit.files.unicode import UNSPACED, readable
from fusionkit.types import TextFormat

SPECIAL_TOKENS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
"""In BERT's order, so that [PAD] has the index 0."""

PUBLISHED = ("bert-base-uncased", "bert-base-cased", "roberta-base", "openai/clip-vit-base-patch32")
"""Names on the hub of the tokenizers of published checkpoints (``checkpoints.base.Plan.tokenizer``)."""

COMPANION = "qformer_tokenizer"
"""The folder among a tokenizer's files that holds that of what looks at images (transformers' InstructBlipProcessor)."""

MOST_ADDED = 2**17  # tokens beside the vocabulary, which are added one by one; the largest published have half as many
LEAST_BYTES = 80  # of an added token in tokenizer.json
MOST_GROWTH = 10**4  # times that a text may grow before it is cut into tokens
PROBE = "a \u2603 zqxj"  # a word, and what few vocabularies hold
MONOTONOUS = tuple(
    letter * 64 + end for letter, end in ("a!", "A!", "1a", " a", "!a")
)  # on which a careless regex goes astray
CHOOSE = "choose a BERT-like tokenizer such as bert-base-uncased"


def build_tokenizer(texts: Iterable[str], directory: Path) -> None:
    """Write the tokenizer of `word_tokenizer` to a directory for `load_tokenizer`; equal texts give equal files."""
    word_tokenizer(texts).save_pretrained(directory)


def word_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer whose vocabulary is every word of `texts`, the most frequent first; needs no network.

    Lower-cases and splits at spaces and punctuation as BERT does, but keeps the marks of letters. Where a language has no
    spaces between words (``UNSPACED``), a letter with its marks is a word; any other is never split.
    """
    normalizer = Sequence([NFC(), BertNormalizer(lowercase=True, strip_accents=False), NFC()])
    splitter = Splits([BertPreTokenizer(), Split(Regex(rf"[{UNSPACED}]\p{{M}}*"), "isolated")])
    normal = (normalizer.normalize_str(readable(text)) for text in texts)
    counts = Counter(word for text in normal for word, _ in splitter.pre_tokenize_str(text))
    words = sorted(counts, key=lambda word: (-counts[word], word))
    vocabulary = {token: index for index, token in enumerate([*SPECIAL_TOKENS.values(), *words])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=SPECIAL_TOKENS["unk"]))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    names = {f"{name}_token": token for name, token in SPECIAL_TOKENS.items()}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_input_names=["input_ids", "attention_mask"], **names
    )


def load_tokenizer(name_or_directory: str | Path) -> PreTrainedTokenizerBase:
    """A fast tokenizer from a directory or by its hub name, made to wrap texts (``wrapped``); ConfigError where there is none."""
    name = str(name_or_directory)
    if Path(name).exists() and not any((Path(name) / file).exists() for file in ("tokenizer.json", "vocab.txt")):
        raise ConfigError(
            f"tokenizer: the folder '{name}' holds neither tokenizer.json nor vocab.txt; give a folder that a "
            "transformers tokenizer was saved to, or the name of one on the hub"
        )
    try:
        require_own_files(name)
        with panics():
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except UserError:
        raise
    except Exception as error:  # of a damaged file the tokenizers' own library raises this very class
        if Path(name).exists():
            file, at_fault = _at_fault(name)
            fault = at_fault or error
            said = reason_of(fault) if isinstance(fault, KeyError | RecursionError) else str(fault)
            reason = " ".join(said.split()) or type(fault).__name__
            raise DataError(f"tokenizer: {file} cannot be read ({reason[:200]}); save the tokenizer anew") from error
        raise ConfigError(
            f"tokenizer: '{name}' is neither a tokenizer folder nor the name of one that the hub gives us; "
            "check the path, or download it once and give its folder"
        ) from error
    longest = tokenizer.model_max_length
    if isinstance(longest, bool) or not isinstance(longest, int | float):
        raise DataError(
            f"tokenizer: model_max_length in tokenizer_config.json of '{name}' is {longest!r:.60}, but has to be a number; "
            "correct it"
        )
    wrapped(tokenizer, name)
    if Path(name, COMPANION).is_dir():
        tokenizer.companion = load_tokenizer(Path(name, COMPANION))
    return tokenizer


def _at_fault(name: str) -> tuple[str, Exception | None]:
    """Which of a tokenizer's files cannot be read, and why; all of them, and None, where each by itself can.

    The model's configuration among them says of what kind the tokenizer is.
    """
    checks: dict[str, Callable[[Path], Any]] = {path.name: Path.stat for path in sorted(Path(name).glob("*.json"))}
    checks |= {
        "config.json": lambda path: AutoConfig.from_pretrained(path.parent, trust_remote_code=False),
        "tokenizer.json": lambda path: Tokenizer.from_file(str(path)),
    }
    for file, check in checks.items():
        try:
            if (path := Path(name, file)).exists():
                read_json(path, has_nan=True)
                with panics():
                    check(path)
        except DataError as error:
            return str(path), error.__cause__ if isinstance(error.__cause__, Exception) else error
        except Exception as error:  # of unknown kinds and values, each with an error of its own
            return str(path), error
    return f"the files in {name}", None


def companion_of(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase | None:
    """The tokenizer of what looks at images and reads instructions by another vocabulary (InstructBLIP's Q-Former), if any."""
    companion: PreTrainedTokenizerBase | None = getattr(tokenizer, "companion", None)
    return companion


def rules_of(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """All that a tokenizer makes of a text, by section of its file, its companion's last.

    Without how it cuts and pads, which it is told with each call and keeps from the last: that says nothing of the next.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    sections = {"vocabulary": tokenizer.get_vocab()} if backend is None else json.loads(backend.to_str())
    rules = {name: section for name, section in sections.items() if name not in ("truncation", "padding")}
    companion = companion_of(tokenizer)
    return rules if companion is None else rules | {COMPANION: rules_of(companion)}


def wrapped(tokenizer: PreTrainedTokenizerBase, name: str = "the one given") -> PreTrainedTokenizerBase:
    """Make a tokenizer put one token before each text and one behind it, and padding on the right; gives it back.

    What it wraps texts in is read off a probe. Where that is not one token on either side (GPT-2 and Qwen: none, Llama: no
    end, T5: no start, XLNet: both behind), a template is put in its place: the start is the token that it calls cls or bos,
    else its end; the end what it calls sep or eos. Where it has no padding the end pads. A tokenizer without a mask stays
    without. Raises ConfigError where it has no end, or cannot spell every text.
    """
    if not tokenizer.is_fast:
        raise ConfigError(f"tokenizer: '{name}' is not a fast tokenizer; {CHOOSE}")
    require_growth(tokenizer, name)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]  # whatever its files say
    if (ends := _ends(tokenizer, name)) is None:
        end = tokenizer.sep_token or tokenizer.eos_token
        if end is None:
            raise ConfigError(f"tokenizer: '{name}' has no token that ends a text (sep or eos); {CHOOSE}")
        start = tokenizer.cls_token or tokenizer.bos_token or end
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=[start, "$A", end],
            pair=[start, "$A", end, "$B", end],
            special_tokens=[(token, tokenizer.convert_tokens_to_ids(token)) for token in {start, end}],
        )
        if (ends := _ends(tokenizer, name)) is None:
            raise ConfigError(f"tokenizer: '{name}' does not put a token before and behind each text; {CHOOSE}")
    for key, token in zip(("cls_token", "sep_token"), ends, strict=True):
        if getattr(tokenizer, key) != token:
            setattr(tokenizer, key, token)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = ends[1]
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    return tokenizer


def require_own_files(name: str) -> None:
    """Raise ConfigError where a tokenizer's own configuration names files elsewhere, which would be read in place of its own.

    What transformers wrote there of old, ``special_tokens_map_file``, it does not read. DataError for more added tokens than
    are added in reasonable time.
    """
    said = get_tokenizer_config(name, trust_remote_code=False)
    added = [len(said.get("added_tokens_decoder") or {})]
    if (path := Path(name, "tokenizer.json")).is_file() and path.stat().st_size > MOST_ADDED * LEAST_BYTES:
        added.append(len(json.loads(path.read_bytes()).get("added_tokens") or []))
    if max(added) > MOST_ADDED:
        raise DataError(f"tokenizer: '{name}' adds {max(added):,} tokens to its vocabulary, one by one; take another")
    files = {key: value for key, value in said.items() if key.endswith(("_file", "_files"))}
    for key, value in files.items():
        named = value if isinstance(value, list) else [value]
        if key != "special_tokens_map_file" and not all(each is None or is_file_name(each) for each in named):
            raise ConfigError(
                f"tokenizer: tokenizer_config.json of '{name}' says that its {key} is {value!a}, outside of it"
            )


def require_growth(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raise DataError where what is put in the place of letters, once behind the other, makes far more of a text than it was.

    tokenizers' library ends the whole process where there is no memory for it.
    """
    backend = tokenizer.backend_tokenizer
    steps = [part.__getstate__() for part in (backend.normalizer, backend.decoder) if part is not None]
    grown = [
        len(text) for step in steps for key, text in leaves(json.loads(step)) if key.endswith(("content", "prepend"))
    ]
    if (times := math.prod(length for length in grown if length)) > MOST_GROWTH:
        raise DataError(
            f"tokenizer: tokenizer.json of '{name}' puts so much in the place of letters that a text may grow {times:.2g} times; "
            "take another"
        )


@contextmanager
def panics() -> Iterator[None]:
    """Raise as ValueError what tokenizers' library raises where it gives up, which is no Exception."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError(str(error)) from error


def _ends(tokenizer: PreTrainedTokenizerBase, name: str) -> list[str] | None:
    """The tokens that a text stands between; None where they are not one on either side."""
    try:
        with panics():
            encoded = tokenizer(PROBE, return_special_tokens_mask=True)
            for text in MONOTONOUS:
                tokenizer(text, verbose=False)  # they may be longer than its model reads
    except Exception as error:  # what tokenizers raises where a word is unknown and there is no token for such
        raise ConfigError(f"tokenizer: '{name}' cannot spell every text ({error}); {CHOOSE}") from error
    ids, is_added = encoded["input_ids"], encoded["special_tokens_mask"]
    if len(ids) < 2 or is_added != [1, *[0] * (len(ids) - 2), 1]:
        return None
    return [str(tokenizer.convert_ids_to_tokens(place)) for place in (ids[0], ids[-1])]


def text_format(tokenizer: PreTrainedTokenizerBase) -> TextFormat:
    """The ids of a ``wrapped`` tokenizer's special tokens; a mask that is one of the others is none."""
    start, end, pad = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id
    mask = None if tokenizer.mask_token_id in (start, end, pad) else tokenizer.mask_token_id
    return TextFormat(start, end, pad, mask, tokenizer.unk_token_id)
