"""The shapes world: its sentences are read back by a small grammar of the tests' own and judged by the files alone.

Colours come from the pixels, sizes and places from the boxes, shapes from the categories: nothing from the generator's scenes.
"""

import json
import pickle
import random
import re
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fusionkit.data.readers.coco import CocoCaptions
from fusionkit.data.readers.refcoco import RefCOCO
from fusionkit.data.readers.vqa import VQAv2
from fusionkit.data.shapes import make_shapes, write
from fusionkit.data.shapes.captions import sample_captions
from fusionkit.data.shapes.draw import draw
from fusionkit.data.shapes.records import SPLITS, annotate
from fusionkit.data.shapes.scene import COLORS, HELD_OUT, Scene, Thing
from fusionkit.data.shapes.words import VOCABULARY
from fusionkit.errors import ConfigError, DataError

SCENES = 150
NUMBERS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
PLACE = r"(?:on the (?:left|right)|(?:at|in) the (?:top|bottom)(?: left| right)?|in the (?:center|middle))"
NOUN = (
    r"(?P<rank>leftmost|rightmost|highest|lowest|largest|biggest|smallest)? ?(?P<size>large|big|small)? ?"
    rf"(?P<color>{'|'.join(COLORS)})? ?"
    rf"(?P<noun>circle|square|triangle|star|cross|ring|object|shape)(?:e?s)?(?: (?P<place>{PLACE}))?"
)
RELATION = r"(?P<relation>(?:to the )?(?:left of|right of)|above|below|under)"


@dataclass(frozen=True)
class Seen:
    """One thing as the files show it; the centre in fractions of the image side."""

    color: str
    shape: str
    size: str
    x: float
    y: float


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made") / "shapes"
    make_shapes(root, scenes=SCENES, seed=3)
    return root


@pytest.fixture(scope="module")
def seen(root: Path) -> dict[int, list[Seen]]:
    content = json.loads((root / "refcoco" / "instances.json").read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    files = {image["id"]: root / "images" / image["file_name"] for image in content["images"]}
    things = defaultdict(list)
    for annotation in content["annotations"]:
        x, y, width, height = annotation["bbox"]
        pixels = np.asarray(Image.open(files[annotation["image_id"]])).astype(int)
        patch = pixels[round(y) : round(y + height), round(x) : round(x + width)].reshape(-1, 1, 3)
        distances = np.abs(patch - np.array(list(COLORS.values()))).max(-1)
        votes = np.bincount(distances.argmin(1)[distances.min(1) < 30], minlength=len(COLORS))
        size = "large" if max(width, height) > 17 else "small"
        place = (x + width / 2) / 64, (y + height / 2) / 64
        color = list(COLORS)[int(votes.argmax())]
        things[annotation["image_id"]].append(Seen(color, names[annotation["category_id"]], size, *place))
    return things


def is_at(thing: Seen, place: str) -> bool:
    if "center" in place or "middle" in place:
        return abs(thing.x - 0.5) < 0.13 and abs(thing.y - 0.5) < 0.13
    checks = {"left": thing.x < 0.45, "right": thing.x > 0.55, "top": thing.y < 0.45, "bottom": thing.y > 0.55}
    return all(checks[word] for word in place.split() if word in checks)


def is_related(a: Seen, relation: str, b: Seen) -> bool:
    along = {"left": b.x - a.x, "right": a.x - b.x, "above": b.y - a.y, "below": a.y - b.y, "under": a.y - b.y}
    return next(along[word] for word in relation.split() if word in along) > 0.05


def having(parts: dict[str, str | None], things: list[Seen]) -> list[Seen]:
    """The things that a noun phrase, taken apart by NOUN, is true of."""
    kinds = [
        thing
        for thing in things
        if parts["noun"] in ("object", "shape", thing.shape)
        and parts["color"] in (None, thing.color)
        and (parts["size"] or "").replace("big", "large") in ("", thing.size)
    ]
    if rank := parts["rank"]:
        keys = {
            "leftmost": lambda t: t.x,
            "rightmost": lambda t: -t.x,
            "highest": lambda t: t.y,
            "lowest": lambda t: -t.y,
        }
        if rank in keys:
            return sorted(kinds, key=keys[rank])[:1]
        return [thing for thing in kinds if thing.size == ("small" if rank == "smallest" else "large")]
    return [thing for thing in kinds if not parts["place"] or is_at(thing, parts["place"])]


def meant(phrase: str, things: list[Seen]) -> list[Seen]:
    """The things that a whole description, with or without a neighbour, is true of."""
    match = re.fullmatch(rf"(?:the )?{NOUN}(?: {RELATION} the (?P<anchor>.+))?", phrase)
    assert match, phrase
    found = having(match.groupdict(), things)
    if not match["anchor"]:
        return found
    anchors = meant(match["anchor"], things)
    assert len(anchors) == 1, phrase
    return [thing for thing in found if is_related(thing, match["relation"], anchors[0])]


def test_captions_are_true(root: Path, seen: dict[int, list[Seen]]) -> None:
    judged = 0
    for split in SPLITS:
        for record in json.loads((root / "annotations" / f"captions_{split}.json").read_text())["annotations"]:
            things, caption = seen[record["image_id"]], record["caption"].lower().rstrip(".")
            assert len(caption.split()) <= 20
            if total := re.search(
                r"\b(one|two|three|four|five|six) (objects?|shapes?)(:|,| among| including| in all|$)", caption
            ):
                assert len(things) == {"one": 1, **NUMBERS}[total[1]], caption
            if re.search(r"\b(single|only|just one|nothing else|on its own|alone)\b", caption):
                assert len(things) == 1, caption
            for mention in re.finditer(rf"\b(?P<count>an?|one|just one|single|{'|'.join(NUMBERS)}) {NOUN}", caption):
                if total and mention["noun"] in ("object", "shape") and not mention["color"]:
                    continue
                found = having(mention.groupdict(), things)
                expected = NUMBERS.get(mention["count"])
                assert len(found) == expected if expected else found, (caption, things)
                judged += 1
            if pair := re.search(rf"an? ({NOUN}) {RELATION} an? ([^,]+)", caption):
                firsts = having(pair.groupdict(), things)
                seconds = meant(pair.groups()[-1], things)
                assert any(is_related(a, pair["relation"], b) for a in firsts for b in seconds), (caption, things)
                judged += 1
    assert judged > 2 * 5 * SCENES


def test_expressions_mean_one_thing(root: Path, seen: dict[int, list[Seen]]) -> None:
    instances = json.loads((root / "refcoco" / "instances.json").read_text())["annotations"]
    by_image = defaultdict(list)
    for annotation in instances:
        by_image[annotation["image_id"]].append(annotation["id"])
    refs = pickle.loads((root / "refcoco" / "refs(unc).p").read_bytes())
    for ref in refs:
        target = seen[ref["image_id"]][by_image[ref["image_id"]].index(ref["ann_id"])]
        for sentence in ref["sentences"]:
            assert meant(sentence["sent"], seen[ref["image_id"]]) == [target], sentence["sent"]
    assert sum(len(ref["sentences"]) for ref in refs) > 2.5 * SCENES


def answer(question: str, things: list[Seen]) -> str | None:
    """What the sentence asks, worked out from the things seen; None where this grammar does not know the question."""
    if match := re.fullmatch(r"(?:is there an?|are there any|can you see an?) (.+)", question):
        return "yes" if meant(match[1], things) else "no"
    if match := re.fullmatch(r"how many (.+) (?:are there|can you see)", question):
        return str(len(meant(match[1], things)))
    if match := re.fullmatch(r"what (color|shape|size) is the (.+)", question):
        (thing,) = meant(match[2], things)
        return getattr(thing, match[1])
    if match := re.fullmatch(r"what(?: shape)? is (.+)", question):
        (thing,) = meant(f"object {match[1]}", things)
        return thing.shape
    if match := re.fullmatch(r"where is the (.+)", question):
        (thing,) = meant(match[1], things)
        places = ("center", "top left", "top right", "bottom left", "bottom right")
        return next(place for place in places if is_at(thing, place))
    if match := re.fullmatch(rf"is the ({NOUN}) (?:on|at) the (left|top) or (?:on|at) the (right|bottom)", question):
        (thing,) = having(match.groupdict(), things)
        return next(side for side in match.groups()[-2:] if is_at(thing, side))
    if match := re.fullmatch(rf"is the ({NOUN}) (larger|bigger|smaller) than the (.+)", question):
        (a,), (b,) = having(match.groupdict(), things), meant(match.groups()[-1], things)
        assert a.size != b.size
        return "yes" if (a.size == "small") == (match.groups()[-2] == "smaller") else "no"
    if match := re.fullmatch(rf"is the ({NOUN}) {RELATION} the ({NOUN.replace('?P<', '?P<b_')})", question):
        anchor = {name[2:]: value for name, value in match.groupdict().items() if name.startswith("b_")}
        (a,), (b,) = having(match.groupdict(), things), having(anchor, things)
        return "yes" if is_related(a, match["relation"], b) else "no"
    if match := re.fullmatch(r"is the (.+?) (?:an? )?(\w+)", question):
        (thing,) = meant(match[1], things)
        return "yes" if match[2].replace("big", "large") in (thing.color, thing.shape, thing.size) else "no"
    return None


def test_answers_are_right(root: Path, seen: dict[int, list[Seen]]) -> None:
    kinds = Counter()
    for split in SPLITS:
        questions = json.loads((root / "vqa" / f"v2_OpenEnded_mscoco_{split}_questions.json").read_text())["questions"]
        annotations = json.loads((root / "vqa" / f"v2_mscoco_{split}_annotations.json").read_text())["annotations"]
        for question, annotation in zip(questions, annotations, strict=True):
            assert question["question_id"] == annotation["question_id"]
            sentence = question["question"].lower().rstrip("?")
            said = annotation["multiple_choice_answer"]
            assert answer(sentence, seen[question["image_id"]]) == said, (sentence, seen[question["image_id"]])
            assert sentence.startswith(annotation["question_type"]) or annotation["question_type"] == "what is"
            assert sum(human["answer"] == said for human in annotation["answers"]) >= 8
            kinds[annotation["question_type"]] += 1
    assert len(kinds) >= 10
    assert sum(kinds.values()) > 7 * SCENES


def test_guessing_does_not_pay() -> None:
    """The best answer by the question's words, or by its type where the words are new, on scenes not counted."""
    known, typical = defaultdict(Counter), defaultdict(Counter)
    asked = [item[1:] for index in range(200) for item in annotate(0, "train", index).questions]
    for said, sentence, kind in asked[: len(asked) * 3 // 4]:
        known[sentence][said] += 1
        typical[kind][said] += 1
    held = asked[len(asked) * 3 // 4 :]
    right = sum((known[sentence] or typical[kind]).most_common(1)[0][0] == said for said, sentence, kind in held)
    assert right / len(held) < 0.45


def test_boxes_are_tight() -> None:
    for image_size in (64, 128):
        for index in range(15):
            scene = annotate(1, "val", index).scene
            boxes = draw(scene, image_size)[1]
            for number, (x, y, width, height) in enumerate(boxes):
                alone, empty = (Scene(things, scene.texture) for things in ((scene.things[number],), ()))
                changed = np.asarray(draw(alone, image_size)[0]) != np.asarray(draw(empty, image_size)[0])
                rows, columns = np.nonzero(changed.any(-1))
                drawn = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
                assert np.allclose((x, y, x + width, y + height), drawn, atol=1), (scene.things[number], drawn)
                assert min(x, y, image_size - x - width, image_size - y - height) >= 0
                assert min(width, height) >= 10 * image_size / 64


def test_five_captions_even_of_things_all_alike() -> None:
    """No description singles one out, and those between left and right have no place of which people would be sure."""
    for count in range(1, 7):
        alike = [
            Thing("red", "star", "small", 0.42 + 0.01 * number, 0.15 * (number + 1), 0.2, 0.0)
            for number in range(count)
        ]
        for seed in range(40):
            captions = sample_captions(Scene(tuple(alike), texture=0), random.Random(seed))
            assert len({words for _, words in captions}) == 5


def test_no_split_shows_what_another_holds(root: Path, seen: dict[int, list[Seen]]) -> None:
    images = {}
    for split in SPLITS:
        content = json.loads((root / "annotations" / f"captions_{split}.json").read_text())
        images[split] = {image["id"] for image in content["images"]}
        for image_id in images[split]:
            pairs = {(thing.color, thing.shape) for thing in seen[image_id]}
            assert bool(pairs & set(HELD_OUT)) == (split == "compositional")
    assert (
        sum(map(len, images.values())) == len(set().union(*images.values())) == len(list((root / "images").iterdir()))
    )
    assert write.split_sizes(5000) == {"train": 5000, "val": 250, "test": 500, "compositional": 250}


def test_training_never_speaks_of_held_out_pairs() -> None:
    pattern = re.compile(r"\b(" + "|".join(f"{color} {shape}" for color, shape in HELD_OUT) + ")")
    spoken = {split: [text for index in range(60) for text in texts_of(split, index)] for split in SPLITS}
    assert not [text for split in SPLITS[:3] for text in spoken[split] if pattern.search(text)]
    assert [text for text in spoken["compositional"] if pattern.search(text)]
    assert {word for texts in spoken.values() for text in texts for word in re.findall(r"\w+", text)} <= set(VOCABULARY)


def texts_of(split: str, index: int) -> list[str]:
    annotated = annotate(0, split, index)
    said = [words for _, words in annotated.captions] + [words for _, _, words, _ in annotated.questions]
    return [text.lower() for text in (*said, *(words for _, _, words in annotated.expressions))]


def test_the_readers_of_the_public_formats_read_it(root: Path) -> None:
    captions = CocoCaptions(f"{root}/annotations/captions_{{split}}.json", f"{root}/images").read("val")
    questions = VQAv2(
        f"{root}/vqa/v2_OpenEnded_mscoco_{{split}}_questions.json",
        f"{root}/vqa/v2_mscoco_{{split}}_annotations.json",
        f"{root}/images",
    ).read("val")
    expressions = RefCOCO(f"{root}/refcoco/refs(unc).p", f"{root}/refcoco/instances.json", f"{root}/images").read("val")
    assert len(captions) == len(questions) == len(expressions) == SCENES // 20
    assert all(len(sample.texts["captions"]) == 5 and sample.image.is_file() for sample in captions)
    assert all(len(text.facts["answers"]) == 10 for sample in questions for text in sample.texts["questions"])
    assert all(len(text.facts["box"]) == 4 for sample in expressions for text in sample.texts["expressions"])
    assert (root / "tokenizer" / "tokenizer.json").is_file()


def test_same_seed_same_bytes_however_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_shapes(tmp_path / "a", scenes=12, seed=5)
    monkeypatch.setattr(write, "CHUNK", 5)
    monkeypatch.setattr(write.os, "cpu_count", lambda: 2)
    make_shapes(tmp_path / "b", scenes=12, seed=5)
    make_shapes(tmp_path / "c", scenes=12, seed=6)
    files = [path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file()]
    assert len(files) > 12 + 3
    assert [
        file for file in files if (tmp_path / "a" / file).read_bytes() != (tmp_path / "b" / file).read_bytes()
    ] == []
    name = "annotations/captions_train.json"
    assert (tmp_path / "a" / name).read_bytes() != (tmp_path / "c" / name).read_bytes()


def test_a_made_set_is_left_alone_and_no_other_overwritten(root: Path, tmp_path: Path) -> None:
    before = (root / "manifest.json").stat().st_mtime_ns, (root / "images").stat().st_mtime_ns
    make_shapes(root, scenes=SCENES, seed=3)
    assert ((root / "manifest.json").stat().st_mtime_ns, (root / "images").stat().st_mtime_ns) == before
    with pytest.raises(DataError, match="seed=3, not seed=4: delete"):
        make_shapes(root, scenes=SCENES, seed=4)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="choose another folder"):
        make_shapes(tmp_path)


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(write, "write_files", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_shapes(tmp_path / "shapes", scenes=2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "value"), [("scenes", 0), ("scenes", 2.5), ("scenes", True), ("seed", -1), ("image_size", 16)]
)
def test_a_parameter_out_of_range_is_told(tmp_path: Path, name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"'{name}' must be a whole number from"):
        make_shapes(tmp_path / "shapes", **{name: value})


def test_a_root_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file"):
        make_shapes(tmp_path / "file" / "shapes", scenes=2)


def test_importing_it_is_cheap() -> None:
    code = "import sys, fusionkit.data.shapes; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(write.__file__).parents[3]).returncode == 0
