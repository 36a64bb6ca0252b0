"""The model card of an export (README.md, which the hub shows): what the model is, what it was made of, under whose licences."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fusionkit.errors import ConfigError, suggest

UNKNOWN = "not stated; look it up before you pass the model on"
PIPELINES = {  # of the hub, by what a task answers; the first that fits
    "question": "visual-question-answering",
    "caption": "image-to-text",
    "text": "zero-shot-image-classification",
}
PUBLISHED = {  # what the makers of published files say of them, by reader; of one's own data in their format it says nothing
    "CocoCaptions": "COCO: annotations CC BY 4.0, photos under Flickr's terms",
    "VQAv2": "VQA v2: annotations CC BY 4.0, photos are COCO's",
    "VisualGenome": "Visual Genome: CC BY 4.0",
    "SnliVE": "SNLI-VE: texts of SNLI, CC BY-SA 4.0; photos are Flickr30k's, for research that earns nothing",
    "NLVR2": "NLVR2: texts CC BY 4.0, images are their owners'",
}
SAYS = {
    "question": "answers questions",
    "phrase": "finds phrases",
    "text": "judges texts",
    "caption": "writes captions",
}
PARTS = ("image_encoder", "text_encoder", "teacher")
WEIGHTS = ("pretrained", "weights", "gguf", "checkpoint_path")  # options that name what a part starts from


def model_card(
    name: str,
    config: Mapping[str, Any],
    artifacts: Mapping[str, Any],
    replies: Mapping[str, str | None],
    use: str,
    licence: str | None = None,
    licences: Mapping[str, str] | None = None,
) -> str:
    """The text of a card.

    ``config`` is the plain configuration of its training, ``replies`` what each task answers, ``use`` lines that say how the
    folder is used, ``licence`` the model's own and ``licences`` those of sources and parts, by name. No path of this machine
    stands in it. Raises ConfigError for a name that is neither.
    """
    sources = (config.get("data") or {}).get("sources") or {}
    if licences is not None and not isinstance(licences, Mapping):
        raise ConfigError(f"licences is {licences}, but has to be names with licences, such as {{SOURCE: cc-by-4.0}}")
    given = dict(licences or {})
    for known in given:
        if known not in (names := [*sources, *PARTS, "checkpoint"]):
            raise ConfigError(f"licences names '{known}', of which the model was not made; {suggest(known, names)}")
    head: dict[str, Any] = {"library_name": "fusionkit", "license": licence or "unknown"}
    answered = set(replies.values())
    if (pipeline := next((tag for word, tag in PIPELINES.items() if word in answered), None)) is not None:
        head["pipeline_tag"] = pipeline
    fusion = _class(config.get("fusion"))
    head["tags"] = ["vision-language", fusion, *replies]
    versions = artifacts.get("versions") or {}
    is_drawn = (config.get("data") or {}).get("prepare") is not None
    lines = [
        f"---\n{yaml.safe_dump(head, sort_keys=False).rstrip()}\n---",
        f"# {name}",
        f"A vision-language model of fusionkit {versions.get('fusionkit', '')}: "
        f"{_part(config.get('image_encoder'))} reads images, "
        f"{_part(config.get('text_encoder'))} texts, {fusion} brings them together. Its tasks: "
        + "; ".join(f"`{task}`" + (f" ({SAYS[word]})" if word in SAYS else "") for task, word in replies.items())
        + ".",
        f"## Use\n\n{use}",
        "## Licences\n\nThe model: "
        + (licence or f"{UNKNOWN}.")
        + "\n\nWhat it was made of:\n\n"
        + table(
            ("part", "what", "licence"),
            [*_weights(config, artifacts, given), *_data(sources, given, is_drawn)],
        ),
        "## Limits\n\nIt says what its training data make likely, not what is true, and repeats what these get wrong about "
        "people and places. Score it on data of the kind that it is to be used on: `fusionkit evaluate checkpoint=FOLDER "
        "data.root=FOLDER`.",
    ]
    return "\n\n".join(lines) + "\n"


def _weights(
    config: Mapping[str, Any], artifacts: Mapping[str, Any], given: Mapping[str, str]
) -> Iterator[tuple[str, str, str]]:
    """What parts start from, and the checkpoint that the whole was imported from or went on from."""
    for part in PARTS:
        section = config.get(part)
        section = section if isinstance(section, Mapping) else {}
        named = next((section[key] for key in WEIGHTS if section.get(key)), None)
        if named is not None:
            what = str(section.get("name")) if named is True else shown(str(named))
            yield part, f"pretrained weights: {what}", given.get(part, UNKNOWN)
    origin = artifacts.get("origin")
    if origin:
        what = f"{origin.get('release')}, file {shown(str(origin.get('file')))}, sha256 {origin.get('sha256')}"
        yield "checkpoint", what, given.get("checkpoint", UNKNOWN)
    elif config.get("checkpoint"):
        yield "checkpoint", shown(str(config["checkpoint"])), given.get("checkpoint", UNKNOWN)


def _data(sources: Mapping[str, Any], given: Mapping[str, str], is_drawn: bool) -> Iterator[tuple[str, str, str]]:
    for source, settings in sources.items():
        readers = sorted(set(_readers(settings.get("reader"))))
        hints = [] if is_drawn else [PUBLISHED[reader] for reader in readers if reader in PUBLISHED]
        hint = f"{UNKNOWN} (where these are the published files: {'; '.join(hints)})" if hints else UNKNOWN
        what = "drawn by fusionkit, " if is_drawn else ""
        yield f"data `{source}`", f"{what}read by {', '.join(readers)}", given.get(source, "none" if is_drawn else hint)


def _readers(node: Any) -> Iterator[str]:
    """The classes of the readers in a section: joined ones hold others."""
    if isinstance(node, Mapping):
        inner = [name for key, value in node.items() if key != "_target_" for name in _readers(value)]
        yield from inner or ([_class(node)] if "_target_" in node else [])
    elif isinstance(node, Sequence) and not isinstance(node, str):
        for each in node:
            yield from _readers(each)


def _class(section: Any) -> str:
    return str(section.get("_target_", "")).rpartition(".")[2] if isinstance(section, Mapping) else ""


def _part(section: Any) -> str:
    """The class of an encoder, and the architecture that it is of, where its section names one."""
    name = section.get("name") if isinstance(section, Mapping) else None
    return _class(section) + (f" ({name})" if name else "")


def shown(named: str) -> str:
    """A hub's name as it is; of a path of this machine the last part alone."""
    is_hub = named.count("/") <= 1 and not named.startswith((".", "/", "~")) and not Path(named).exists()
    return named if is_hub else Path(named).name


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows as Markdown."""
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *cells])
