"""What ``data=table`` trains where the user does not say: tasks by the columns, sizes by the pictures and texts, and a rate."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from fusionkit.assembly.hub_data import fetch, is_hub_name
from fusionkit.config import primary_groups
from fusionkit.data.images import CorruptImage, decode
from fusionkit.data.readers.open_table import OpenTable
from fusionkit.data.readers.table import Table
from fusionkit.data.sample import Sample
from fusionkit.data.tables.samples import Samples, as_samples
from fusionkit.data.texts.conversations import CONVERSATIONS
from fusionkit.data.texts.word_labels import LABELS, TAGGED
from fusionkit.data.vqa_answers import answer_key
from fusionkit.errors import ConfigError, DataError

Load = Callable[[list[str]], DictConfig]
TASKS: Mapping[str, Mapping[str, float]] = {  # by kind of text, the tasks that read it and their weights
    "captions": {"itc": 1.0, "itm": 1.0, "mlm": 1.0},
    "questions": {"vqa": 1.0},
    "expressions": {"grounding": 2.0},
    "hypotheses": {"entailment": 1.0},
    "statements": {"nlvr2": 1.0},
    CONVERSATIONS: {"chat": 1.0},
    TAGGED: {"token_classification": 1.0},
}
UNKNOWN = ("itc", "itm", "mlm", "vqa", "grounding", "entailment")  # the tasks of conf/objectives/table.yaml
MOST_TEXTS = {"captions": 1, "questions": 6, "expressions": 4, "hypotheses": 2, "statements": 2} | {
    CONVERSATIONS: 1,
    TAGGED: 1,
}  # of an image and step
SMALL, LARGE = 64, 128  # sides, in pixels, that pictures are shown at
SMALL_SIDE = 96  # of a picture's shorter side, up to which it is small
LOOKED_AT = 64  # pictures whose sides are measured
BATCH, LEAST_BATCH = 64, 4  # images
STEPS = 640  # that a small data set is trained for, at least
EPOCHS = 10, 100  # at least and at most
ANSWERS = 3129  # that a head chooses among, at most (as of VQA v2)
CACHED = 512 * 2**20  # bytes of pictures that are kept in memory
TOKENS = 16, 64  # of a text, at least and at most
TALK = 160  # tokens of a conversation, at most, for which tiny_llama has positions beside an image and a reply
TALKS = ["text_encoder=tiny_llama", "fusion=prefix_shuffle"]  # what can talk
PER_WORD = 1.5  # tokens


def complete_table(config: DictConfig, hydra: Any, load: Load) -> list[str]:
    """Give a composed training on a table what follows from it; what the user said stays. Gives sentences about it.

    An experiment says all itself. ``load`` composes a training of overrides.
    """
    choices = hydra.runtime.choices
    if choices.get("data") != "table" or any(
        choices.get(group) not in (None, "null") for group in ("experiment", "sweep")
    ):
        return []
    given = [_over(str(text)) for text in hydra.overrides.task if text != "objectives=table"]
    named = {text.lstrip("+~").partition("=")[0] for text in given}
    options = OmegaConf.to_container(config.data.sources.table.reader, resolve=True)
    assert isinstance(options, dict)
    arguments = {str(key): value for key, value in options.items() if not str(key).startswith("_")}
    if is_hub_name(arguments["files"], Path(arguments["root"])):
        arguments["files"] = fetch(arguments["files"])
        given = [text for text in given if text.partition("=")[0] != "data.files"]
        given.append(f"data.files={_as_override(arguments['files'])}")
    table = Table(**arguments)
    is_read = True
    try:
        choices_made = choices_for(table.opened)
    except DataError:  # which the data module says, where the training is more than composed
        is_read, choices_made = False, [f"task=[{','.join(UNKNOWN)}]", "objectives=table"]
    chosen = [text for text in choices_made if not _is_said(text, named)]
    place = [text for text in hydra.overrides.hydra if text.startswith("hydra.searchpath=")]
    new = load([*place, *chosen, *given])
    with open_dict(config):
        for key in list(config):
            if key not in new:
                del config[key]
        for key in new:
            if key != "hydra":
                config[key] = new[key]
    return [f"chosen by the table: {' '.join(text.lstrip('+') for text in chosen)}"] if chosen and is_read else []


def _as_override(files: Mapping[str, Sequence[str]]) -> str:
    """Files by split in Hydra's grammar."""
    quoted = {
        split: ", ".join("'" + path.replace("'", "\\'") + "'" for path in paths) for split, paths in files.items()
    }
    return "{" + ", ".join(f"{split}: [{paths}]" for split, paths in quoted.items()) + "}"


def _over(override: str) -> str:
    """An override that adds an objective, which may be there by now, as one that sets it."""
    is_added = override.startswith("+objectives.table.")
    return f"+{override}" if is_added else override


def _is_said(override: str, named: set[str]) -> bool:
    """Whether the user said something else: of the key, or of the part that it is an option of."""
    key = override.lstrip("+").partition("=")[0]
    groups = primary_groups("train")
    parts = {"objectives": "objectives", "image_encoder": "image_encoder", "optimizer": "optimizer"}
    if key in groups:
        return key in named
    part = parts.get(key.partition(".")[0])
    return key in named or (part is not None and part in named)


def choices_for(table: OpenTable) -> list[str]:
    """The overrides of a training on a table. Raises ConfigError where no task can be trained on it, and DataError."""
    samples = as_samples(table.read("train"))
    weights = tasks_for(samples)
    if not weights:
        raise ConfigError(
            f"{table.path} has {' and '.join(table.meaning.kinds)}, which no task trains on"
            f"{' without answers' if 'questions' in table.meaning.kinds else ''}; say what its columns are with "
            "data.columns.NAME=COLUMN"
        )
    kinds = [kind for kind, tasks in TASKS.items() if weights.keys() & tasks.keys()]
    counts = {kind: _texts_per_image(samples, kind) if kind in kinds else 0 for kind in MOST_TEXTS}
    side = side_for(samples)
    batch = min(BATCH, max(LEAST_BATCH, len(samples) // 8))
    epochs = min(EPOCHS[1], max(EPOCHS[0], math.ceil(STEPS * batch / len(samples))))
    source = "data.sources.table"
    return [
        f"task=[{','.join(weights)}]",
        "objectives=none",
        f"+objectives.table={{{', '.join(f'{task}: {weight:g}' for task, weight in weights.items())}}}",
        "optimizer=muon",
        *(["optimizer.rules=[['temperature',0.1,0.0]]"] if "itc" in weights else []),
        *(["optimizer.rules=[]", *TALKS] if "chat" in weights else []),
        *([f"task.token_classification.labels=[{','.join(word_labels(samples))}]"] if TAGGED in kinds else []),
        f"data.image_size={side}",
        *(["image_encoder.stage=3"] if side > SMALL else []),
        *([f"data.answers.min_count={least_count(samples)}"] if "vqa" in weights else []),
        *(["data.missing=skip"] if table.is_sharded else []),  # nobody has looked at all pictures of the web
        f"{source}.batch_size={batch}",
        *(f"{source}.texts_per_image.{kind}={count}" for kind, count in counts.items()),
        f"{source}.max_length={longest_text(samples, kinds)}",
        f"{source}.cache={str(len(samples) * side * side * 3 <= CACHED).lower()}",
        f"trainer.max_epochs={epochs}",
        f"trainer.check_val_every_n_epoch={max(1, epochs // 4)}",
        *_splits(table.splits, source),
    ]


def _splits(names: Sequence[str], source: str) -> list[str]:
    """The roles of the splits; where one is not there, validation and test are of the other's pictures, and may be."""
    there = [name for name in ("val", "test") if name in names]
    if not there or "train" not in names:
        raise ConfigError(f"the splits are {', '.join(names)}; training needs 'train', and 'val' or 'test' beside it")
    if len(there) == 2:
        return []
    (only,), lacking = there, next(name for name in ("val", "test") if name not in there)
    return [f"{source}.splits.{lacking}=[{only}]", "+data.allow_overlap=[[table/val,table/test]]"]


def tasks_for(samples: Sequence[Sample]) -> dict[str, float]:
    """The tasks that these images' texts feed, with their weights; conversations, which need a language model, stand alone."""
    found: dict[str, float] = {}
    columns = as_samples(samples)
    if columns.counts(CONVERSATIONS).any():
        return dict(TASKS[CONVERSATIONS])
    for kind, tasks in TASKS.items():
        if columns.counts(kind).any() and (kind != "questions" or any(columns.facts(kind, "answers"))):
            found |= tasks
    return found


def _texts_per_image(samples: Samples, kind: str) -> int:
    """As many as an image has on average, up to the most."""
    counts = samples.counts(kind)
    return max(1, min(MOST_TEXTS[kind], round(int(counts.sum()) / max(1, int((counts > 0).sum())))))


def side_for(samples: Sequence[Sample]) -> int:
    """The size at which pictures are shown, by the shorter sides of some of them."""
    sides = []
    for sample in samples[:: max(1, len(samples) // LOOKED_AT)]:
        try:
            sides.append(min(decode(sample.image, 1).size))
        except CorruptImage:
            continue
    return SMALL if not sides or median(sides) <= SMALL_SIDE else LARGE


def least_count(samples: Sequence[Sample]) -> int:
    """How often an answer has to be given, so that a head chooses among few enough."""
    given = as_samples(samples).facts("questions", "multiple_choice_answer")
    counts = Counter(Counter(answer_key(str(answer)) for answer in given if answer is not None).values())
    least = 1
    while sum(number for count, number in counts.items() if count >= least) > ANSWERS:
        least += 1
    return least


def word_labels(samples: Sequence[Sample]) -> list[str]:
    """The labels that words have, in quotes."""
    given = {label for labels in as_samples(samples).facts(TAGGED, LABELS) for label in labels}
    return ["'" + label.replace("'", "\\'") + "'" for label in sorted(given)]


def longest_text(samples: Sequence[Sample], kinds: Sequence[str]) -> int:
    """Tokens that nearly all texts fit in."""
    columns = as_samples(samples)
    words = sorted(len(text.split()) or 1 for kind in kinds for text in columns.strings(kind))
    typical = words[min(len(words) - 1, int(0.999 * len(words)))]
    most = TALK if CONVERSATIONS in kinds else TOKENS[1]
    return max(TOKENS[0], min(most, math.ceil(PER_WORD * typical) + 2))
