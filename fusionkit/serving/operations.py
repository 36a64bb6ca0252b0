"""From what is asked to the model's calls: ``prepare`` runs in a thread that reads pictures, ``compute`` in the model's."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fusionkit.data.images import Decoded
from fusionkit.data.requests import Request, asked_text, readable_text, require_pictures
from fusionkit.errors import UserError
from fusionkit.inference.answering import Answer as Reply
from fusionkit.inference.image_search import Query, Ways
from fusionkit.scoring.records import Record
from fusionkit.serving.batching import Job
from fusionkit.serving.filters import Filter, draft, filtered
from fusionkit.serving.limits import Limits
from fusionkit.serving.pictures import content_of, read_picture
from fusionkit.serving.problems import Gone, Problem
from fusionkit.serving.schemas import Answer, Asked, Caption, Embed, Ground, Match, Search
from fusionkit.serving.served import KINDS, Served
from fusionkit.visual.attention_maps import Look

SCHEMAS: Mapping[str, type[Asked]] = {
    "match": Match,
    "answer": Answer,
    "ground": Ground,
    "caption": Caption,
    "embed": Embed,
    "search": Search,
}
DIGITS = 4  # of a look's numbers
UNSEEN = "cannot be read any more, or has changed; the index has to be brought up to date"


@dataclass(frozen=True)
class Key:
    """What jobs have in common that are computed together."""

    model: str
    kind: str
    by: str | None = None
    top: int = 5
    look: bool = False
    is_conversation: bool = False
    ways: Ways | None = None


def prepare(kind: str, asked: Any, served: Served, limits: Limits) -> tuple[Key, Any]:
    """The key and payload of a job: pictures decoded and finished, texts checked. Raises Problem."""
    by, look = getattr(asked, "by", None), getattr(asked, "look", False)
    top, k = (min(getattr(asked, name, 5), limits.max_top) for name in ("top", "k"))  # what is not said is bounded too
    served.require(kind, by, look)
    try:
        if kind in KINDS:
            request = _request(kind, asked, served, limits)
            is_conversation = request.conversation is not None or bool(request.others)
            return Key(served.name, kind, by, top, look, is_conversation), request
        text = None if asked.text is None else readable_text(asked.text, "text")
        if text is None and asked.image is None:
            raise Problem(422, f"nothing is asked: {kind} takes a text, an image or both")
        image = None if asked.image is None else _picture(asked.image, "image", served, limits)
        shown = None if image is None else Request(Path("image"), {}, picture=image)
        if kind == "embed":
            return Key(served.name, kind), Query(text, shown)
        return Key(served.name, kind, ways=Ways(top, k, asked.weight)), Query(text, shown)
    except UserError as error:
        raise Problem(422, str(error)) from None


def _request(kind: str, asked: Any, served: Served, limits: Limits) -> Request:
    given = [("image", asked.image)] if asked.image is not None else []
    if (several := getattr(asked, "images", None)) is not None:
        if given:
            raise Problem(422, "the request has both 'image' and 'images'; send one of them")
        given = [(f"images.{number}", each) for number, each in enumerate(several)]
    if not given:
        raise Problem(422, "the request has no 'image'; add it")
    if kind == "caption":
        texts, turns = dict[str, str](), None
    else:
        word = KINDS[kind]
        said: Any = getattr(asked, word)
        if kind == "answer" and asked.messages is not None:
            if said is not None:
                raise Problem(422, "the request has both 'question' and 'messages'; send one of them")
            said = [message.model_dump() for message in asked.messages]
        if said is None:
            raise Problem(422, f"the request has no '{word}'; add it")
        text, turns = asked_text(said, word)
        texts = {word: text}
    first, *others = [_picture(each, name, served, limits) for name, each in given]
    request = Request(Path("image"), texts, kind == "caption", None, None, True, first, turns, tuple(others))
    require_pictures(request)
    return request


def _picture(text: str, name: str, served: Served, limits: Limits) -> Decoded:
    return read_picture(content_of(text, name), served.data, limits.pixels, name)


def compute(models: Mapping[str, Served], rule: Filter | None, key: Key, jobs: Sequence[Job]) -> list[Any]:
    """What is said to jobs of one key: a record of JSON for each, or a Problem. Raises Problem for a mistake of the user's."""
    served = models[key.model]
    try:
        if key.kind == "embed":
            found = _embed(served, [job.payload for job in jobs])
        elif key.kind == "search":
            found = _search(served, [job.payload for job in jobs], key.ways)
        else:
            found = _replies(served, key, jobs, rule)
    except UserError as error:
        raise Problem(422, str(error)) from None
    return [each if isinstance(each, Problem) else filtered(key.kind, each, rule) for each in found]


def _replies(served: Served, key: Key, jobs: Sequence[Job], rule: Filter | None) -> list[Any]:
    predictor = replace(served.predictor, by=key.by, top=key.top, looks=key.look)
    with _watched(served, key, jobs, rule):
        replies = predictor.answer([job.payload for job in jobs])
    return [_said(reply, KINDS[key.kind], key.kind, served) for reply in replies]


def _said(reply: Reply, word: str, kind: str, served: Served) -> Record | Problem:
    record = reply.record
    if "error" in record:
        return Problem(422, record["error"])
    wanted = {"match": "match", "ground": "bbox"}.get(kind, kind)
    if wanted not in record:
        others = ", ".join(name for name in record if name not in ("image", word))
        return Problem(422, f"the model '{served.name}' gives no '{wanted}' for this, but {others}; ask it otherwise")
    asked = {"image"} if kind == "caption" else {"image", word}
    found = {name: value for name, value in record.items() if name not in asked}
    return found | ({"look": _shown(reply.looks[word], served)} if word in reply.looks else {})


def _shown(look: Look, served: Served) -> Record:
    """The maps of a text and its words, each from 0 (its least) to 1 (its most)."""
    maps = []
    for each in look.best:
        low, high = float(each.min()), float(each.max())
        maps.append(((each - low) / (high - low if high > low else 1.0)).round(DIGITS).tolist())
    kind = "attention" if look.gradcam is None else "gradcam"
    return {"kind": kind, "words": list(look.words), "whole": maps[0], "maps": maps[1:], "middle": served.is_middle}


def _watched(served: Served, key: Key, jobs: Sequence[Job], rule: Filter | None) -> Any:
    """Within, those who stream a caption are told of it token by token; when nobody is there any more it ends with Gone."""
    task: Any = next(iter(replace(served.predictor, by=key.by).repliers(KINDS[key.kind]).values()))
    if key.kind != "caption" or not hasattr(task, "writer"):
        return nullcontext()

    def tell(texts: Sequence[str]) -> None:
        if all(job.is_gone for job in jobs):
            raise Gone
        for job, text in zip(jobs, texts, strict=True):
            if job.tell is not None and not job.is_gone and (sent := draft(key.kind, text, rule)) is not None:
                job.tell(sent)

    return task.writer.watched(tell)


def _embed(served: Served, queries: Sequence[Query]) -> list[Record]:
    embedder, found = served.embedder, list[Record]({} for _ in queries)
    shown = [number for number, query in enumerate(queries) if query.image is not None]
    said = [number for number, query in enumerate(queries) if query.text is not None]
    images = [request for query in queries if (request := query.image) is not None]
    rows = [row for part in embedder.map_images(images, embedder.project_images) for row in part.tolist()]
    for number, row in zip(shown, rows, strict=True):
        found[number]["image"] = row
    texts = embedder.texts([query.text for query in queries if query.text is not None]).tolist() if said else []
    for number, row in zip(said, texts, strict=True):
        found[number]["text"] = row
    return found


def _search(served: Served, queries: Sequence[Query], ways: Ways | None) -> list[Record]:
    assert served.search is not None
    assert ways is not None
    found = []
    for records in served.search.search(queries, ways):
        for record in records:
            record["row"] = served.rows[record["image"]]
            if "error" in record:  # which names a file of the server's
                record["error"] = UNSEEN
        found.append(
            {"found": [{**record, "image": record["image"].encode(errors="replace").decode()} for record in records]}
        )
    return found
