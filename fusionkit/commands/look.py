"""``fusionkit data look FILE``: what is understood of a user's own table, a contact sheet, and the yaml to train with."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from fusionkit.assembly.hub_data import fetch, is_hub_name
from fusionkit.assembly.table_choices import choices_for
from fusionkit.config import primary_groups
from fusionkit.data.images import CorruptImage, decode
from fusionkit.data.readers.open_table import OpenTable
from fusionkit.data.readers.row_pictures import digest_of
from fusionkit.data.readers.table import Table
from fusionkit.data.readers.table_data import told
from fusionkit.data.sample import Sample, Text
from fusionkit.data.texts.languages import languages_of
from fusionkit.errors import ConfigError, UserError
from fusionkit.files.atomic import write_text
from fusionkit.files.names import is_file_name
from fusionkit.scoring.records import require_writable
from fusionkit.scoring.sheet import GREEN, Mark, Note, Panel, Picture, Sheet
from fusionkit.visual.contact_sheet import draw_sheet

OWN = ("output", "name")  # keys that are not the table's
SHOWN = 5  # samples
SHEET = 24  # pictures
Splits = Mapping[str, Sequence[Sample]]


def look(config: DictConfig) -> None:
    """Print what is understood, and write a sheet and an experiment into ``config.output``."""
    options: Any = OmegaConf.to_container(config, resolve=True)
    given = {key: value for key, value in options.items() if key not in OWN}
    if is_hub_name(given["files"], Path(given["root"])):
        given["files"] = fetch(given["files"])
    table = Table(**given, missing="skip").opened
    for sentence in told(table):
        print(sentence)
    splits = {split: table.read(split) for split in table.splits}
    for line in [*counted(splits, table), *duplicates(splits), *spoken(splits), *shown(splits)]:
        print(line)
    name = str(config.name or _name_of(table))
    if not is_file_name(name):
        raise ConfigError(f"name is {name!r}, but becomes a file's name; give another as name=NAME")
    folder = Path(config.output)
    require_writable(folder, "output")
    sheet, damaged = sheet_of(splits)
    if damaged:
        drawn = len(damaged) + len(sheet.panels)
        print(
            f"damaged: {len(damaged):,} of the {drawn:,} pictures that were drawn for the sheet, such as {damaged[0]}; "
            "replace them, or train with data.missing=skip"
        )
    draw_sheet(sheet, f"{table.path}: what was understood", folder / f"{name}.png")
    print(f"pictures: {folder / name}.png")
    try:
        choices = choices_for(table)
    except UserError as error:
        print(f"nothing to train yet: {error}")
        return
    path = folder / "experiment" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, experiment(name, given | {"columns": dict(table.mapped)}, table, choices))
    print(f"train it: fusionkit train --config-dir {folder} experiment={name}")


def counted(splits: Splits, table: OpenTable) -> Iterator[str]:
    """Images and texts by split, and what is missing."""
    for split, samples in splits.items():
        texts = Counter(kind for sample in samples for kind, said in sample.texts.items() for _ in said)
        listed = ", ".join(f"{count:,} {kind}" for kind, count in texts.items())
        yield f"{split}: {len(samples):,} images, {listed}"
    answers = Counter(
        str(text.facts["multiple_choice_answer"])
        for samples in splits.values()
        for text in _texts(samples)
        if "multiple_choice_answer" in text.facts
    )
    if answers:
        frequent = ", ".join(f"{answer} ({count:,})" for answer, count in answers.most_common(8))
        yield f"answers: {len(answers):,} different ones, most often {frequent}"
    missing = {split: count for split, count in table.skipped.items() if count and split not in table.hashed}
    for split, count in missing.items():
        yield f"missing: {count:,} rows of {split} name a picture that is not there; data.missing=skip leaves them out"
    if not missing:
        yield "missing: no picture"


def duplicates(splits: Splits) -> Iterator[str]:
    """Pictures that are there under several names, by their content, and which of them two splits share."""
    places: dict[bytes, list[tuple[str, Sample]]] = {}
    for split, samples in splits.items():
        for sample in samples:
            places.setdefault(digest_of(sample.image), []).append((split, sample))
    several = [found for found in places.values() if len(found) > 1]
    if not several:
        yield "duplicates: none"
        return
    first = " = ".join(f"{split}: {sample.image_id}" for split, sample in several[0][:3])
    yield f"duplicates: {len(several):,} pictures are there under several names, such as {first}"
    shared = [found for found in several if len({split for split, _ in found}) > 1]
    if shared:
        pairs = Counter(" and ".join(sorted({split for split, _ in found})) for found in shared)
        told_pairs = ", ".join(f"{count:,} of {pair}" for pair, count in pairs.most_common())
        yield f"duplicates: {len(shared):,} of these are in two splits ({told_pairs}): a score on them would say little"


def spoken(splits: Splits) -> Iterator[str]:
    """The languages of the texts."""
    texts = [text.text for samples in splits.values() for text in _texts(samples)]
    found = languages_of(texts)
    yield f"languages, most probably: {', '.join(f'{name} {share:.0%}' for name, share in found.items() if share >= 0.01)}"


def shown(splits: Splits) -> Iterator[str]:
    """A few samples, from all over the table."""
    every = [(split, sample) for split, samples in splits.items() for sample in samples]
    for split, sample in every[:: max(1, len(every) // SHOWN)][:SHOWN]:
        yield f"{split} image {sample.image_id} ({sample.image})"
        for kind, texts in sample.texts.items():
            for text in texts[:2]:
                yield f"  {kind}: {text.text}{_facts(text)}"


def _facts(text: Text) -> str:
    known = {key: value for key, value in text.facts.items() if key in ("answers", "box", "gold_label", "label")}
    return "".join(f"  {key}={value}" for key, value in known.items())


def _texts(samples: Sequence[Sample]) -> Iterator[Text]:
    for sample in samples:
        for texts in sample.texts.values():
            yield from texts


def sheet_of(splits: Splits) -> tuple[Sheet, list[str]]:
    """Pictures from all over the table, each with its texts and boxes; and what is wrong with those that cannot be shown."""
    every = [(split, sample) for split, samples in splits.items() for sample in samples]
    panels: list[Panel] = []
    damaged: list[str] = []
    for split, sample in every[:: max(1, len(every) // SHEET)][:SHEET]:
        try:
            decode(sample.image, 1)
        except CorruptImage as error:
            damaged.append(str(error))
            continue
        said = [(kind, text) for kind, texts in sample.texts.items() for text in texts]
        notes = tuple(
            Note(f"{text.text} {' / '.join(map(str, text.facts.get('answers', ())))}") for _, text in said[:3]
        )
        marks = tuple(Mark(text.facts["box"], GREEN) for _, text in said[:3] if "box" in text.facts)
        picture = Picture(sample.image, sample.size, marks, notes=notes, upright=sample.upright)
        panels.append(Panel(f"{split}: {sample.image_id}", (picture,)))
    return Sheet("each picture with up to three of its texts, answers and boxes", panels), damaged


def _name_of(table: OpenTable) -> str:
    stands_alone = table.path.is_file() and len(table.places) == 1
    stem = table.path.stem if stands_alone else table.places[0].folder.resolve().name
    return "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in stem).strip("_") or "table"


def experiment(name: str, given: Mapping[str, Any], table: OpenTable, choices: Sequence[str]) -> str:
    """The yaml of a training on a table, in which everything that was guessed is written down."""
    groups, values = primary_groups("train"), OmegaConf.create({"name": name})
    defaults: list[dict[str, Any]] = [{"override /data": "table"}]
    for key, value in given.items():
        if (plain := _plain(value)) not in (None, {}, []):
            OmegaConf.update(values, f"data.{key}", plain)
    if "expressions" in table.meaning.kinds:
        OmegaConf.update(values, "data.boxes", table.convention)
    for choice in choices:
        key, _, value = choice.lstrip("+").partition("=")
        parsed = yaml.safe_load(value)
        if key in groups:
            defaults.append({f"override /{key}": parsed})
        else:
            OmegaConf.update(values, key, parsed)
    head = f"# @package _global_\n# {table.path} as `fusionkit data look` understood it: {', '.join(table.meaning.kinds)}.\n"
    body = yaml.safe_dump({"defaults": defaults}, sort_keys=False, allow_unicode=True) + "\n"
    return head + body + yaml.safe_dump(OmegaConf.to_container(values), sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        said = {key: _plain(each) for key, each in value.items()}
        return {key: each for key, each in said.items() if each is not None}
    if isinstance(value, list | tuple):
        return value[0] if len(value) == 1 else list(value)
    return value
