"""Annotation files in the published layouts and sizes, over tiny pictures: random words in place of captions.

COCO (Karpathy's file, 123,287 images with 616,767 captions), VQA v2 (443,757, 214,354 and 447,793 questions), Visual Genome
(108,077 images with 5.4 million regions) and lists of 5.1 million image-text pairs. All pictures are links to a few files.
"""

import json
import os
import random
from collections.abc import Iterator
from itertools import accumulate, count
from pathlib import Path
from typing import Any

from PIL import Image

COCO_IMAGES, COCO_TRAIN, HELD_OUT = 123_287, 82_783, 5_000
QUESTIONS = {"train2014": 443_757, "val2014": 214_354, "test2015": 447_793}
VQA_IMAGES = {"train2014": 82_783, "val2014": 40_504, "test2015": 81_434}
VG_IMAGES, REGIONS = 108_077, 5_408_689
LISTS = {"coco": 566_747, "vg": 768_536, "sbu": 859_739, "cc3m": 2_952_023}  # pairs
LIST_IMAGES = {"coco": 113_287, "vg": 100_297, "sbu": 859_739, "cc3m": 2_952_023}
SIDES = (32, 24)
LINKS = 30_000  # names of one file, of which file systems allow some ten thousands
BELOW = 10_000  # files in a folder of the web's


class Writer:
    """Writes everything at a scale, the same at every call."""

    def __init__(self, folder: Path, scale: float) -> None:
        self.folder, self.scale, self.rng = folder, scale, random.Random(0)
        words = ["".join(self.rng.choices("abcdefghilmnoprstu", k=self.rng.randint(2, 9))) for _ in range(8000)]
        common = list(accumulate(1 / (rank + 3) for rank in range(len(words))))
        self.said, self.short = (
            [" ".join(self.rng.choices(words, cum_weights=common, k=self.rng.randint(*most))) for _ in range(50_000)]
            for most in ((7, 15), (3, 7))
        )
        self.answers = words[:4000]
        self.links = count()
        self.made = set(folder.rglob("*/")) if folder.is_dir() else set()

    def many(self, number: int) -> int:
        """A published number at the scale."""
        return max(64, round(number * self.scale))

    def picture(self, name: str) -> None:
        """A file below the folder."""
        place, number = self.folder / name, next(self.links)
        seed = self.folder / "pictures" / f"{number // LINKS}.jpg"
        for parent in (place.parent, seed.parent):
            if parent not in self.made:
                parent.mkdir(parents=True, exist_ok=True)
                self.made.add(parent)
        if number % LINKS == 0:
            Image.new("RGB", SIDES, (number // LINKS % 256, 90, 200)).save(seed)
        os.link(seed, place)

    def write(self, name: str, content: Any) -> None:
        """A JSON file below the folder."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))

    def everything(self) -> None:
        """All files, each of which takes its memory alone."""
        self.coco()
        self.vqa()
        self.visual_genome()
        self.lists()

    def coco(self) -> None:
        """Karpathy's file, five captions an image, and the pictures of train2014 and val2014."""
        rows, ids = [], count()
        for number, part in self.coco_images():
            name = f"COCO_{part}_{number:012d}.jpg"
            self.picture(f"{part}/{name}")
            turn, rest = divmod(number, COCO_IMAGES // HELD_OUT // 2)
            split = ("val", "test")[turn % 2] if rest == 0 else ("train" if part == "train2014" else "restval")
            said = [{"raw": text, "sentid": next(ids)} for text in self.rng.choices(self.said, k=5)]
            row = {"filepath": part, "filename": name, "cocoid": number, "imgid": number, "split": split}
            rows.append(row | {"sentences": said})
        self.write("dataset_coco.json", {"dataset": "coco", "images": rows})

    def coco_images(self) -> Iterator[tuple[int, str]]:
        """COCO's numbers, and the part that each belongs to."""
        train = self.many(COCO_TRAIN)
        return ((n, "train2014" if n < train else "val2014") for n in range(self.many(COCO_IMAGES)))

    def vqa(self) -> None:
        """Questions and the answers of ten people, an even number of questions for each image."""
        first = {"train2014": 0, "val2014": self.many(COCO_TRAIN), "test2015": self.many(COCO_IMAGES)}
        for part, published in QUESTIONS.items():
            images = self.many(VQA_IMAGES[part]) - (
                part != "test2015"
            )  # of a scaled number none may be beyond COCO's last
            numbers = range(self.many(published))
            ids = [first[part] + number % images for number in numbers]
            if part == "test2015":
                for number in range(images):
                    self.picture(f"{part}/COCO_{part}_{first[part] + number:012d}.jpg")
            about = [
                {"question_id": image * 1000 + n, "image_id": image} for n, image in zip(numbers, ids, strict=True)
            ]
            asked = [{**row, "question": self.rng.choice(self.short) + "?"} for row in about]
            self.write(
                f"v2_OpenEnded_mscoco_{part}_questions.json",
                {"data_subtype": part, "data_type": "mscoco", "questions": asked},
            )
            if part != "test2015":
                rows = [row | self.answered() for row in about]
                self.write(f"v2_mscoco_{part}_annotations.json", {"data_subtype": part, "annotations": rows})

    def answered(self) -> dict[str, Any]:
        """Ten people's answers, most of which agree."""
        common, other = self.answers[int(self.rng.expovariate(0.01)) % len(self.answers)], self.rng.choice(self.answers)
        agree = self.rng.randint(4, 10)
        given = [common] * agree + [other] * (10 - agree)
        return {
            "question_type": "what is",
            "answer_type": self.rng.choice(("yes/no", "number", "other")),
            "multiple_choice_answer": common,
            "answers": [
                {"answer": each, "answer_confidence": "yes", "answer_id": n} for n, each in enumerate(given, 1)
            ],
        }

    def visual_genome(self) -> None:
        """Region descriptions with their boxes; half of the images are COCO's."""
        images, regions, ids = self.many(VG_IMAGES), self.many(REGIONS), count()
        coco = self.many(COCO_IMAGES)
        about, rows = [], []
        for number in range(images):
            id = 2_000_000 + number
            self.picture(f"vg/images/{id}.jpg")
            coco_id = number if number % 2 and number < coco else None
            about.append({"image_id": id, "width": 800, "height": 600, "coco_id": coco_id, "flickr_id": None})
            many = regions // images + (number < regions % images)
            found = [self.region(id, next(ids)) for _ in range(many)]
            rows.append({"id": id, "regions": found})
        self.write("vg/image_data.json", about)
        self.write("vg/region_descriptions.json", rows)

    def region(self, image: int, number: int) -> dict[str, Any]:
        """One region inside of 800 x 600 pixels."""
        x, y = self.rng.randrange(700), self.rng.randrange(500)
        box = {"x": x, "y": y, "width": self.rng.randint(10, 100), "height": self.rng.randint(10, 100)}
        return {"region_id": number, "image_id": image, **box, "phrase": self.rng.choice(self.short)}

    def lists(self) -> None:
        """Lists of pairs as ALBEF reads them: of COCO's and Visual Genome's pictures, and of the web's."""
        for name, published in LISTS.items():
            images, pairs = self.many(LIST_IMAGES[name]), self.many(published)
            places = [self.place(name, number) for number in range(images)]
            if name in ("sbu", "cc3m"):
                for place in places:
                    self.picture(place)
            rows = [{"image": places[n % images], "caption": self.rng.choice(self.said)} for n in range(pairs)]
            self.write(f"web/{name}.json", rows)

    def place(self, name: str, number: int) -> str:
        """Where a picture of a list lies."""
        if name == "coco":
            part = "train2014" if number < self.many(COCO_TRAIN) else "val2014"
            return f"{part}/COCO_{part}_{number:012d}.jpg"
        if name == "vg":
            return f"vg/images/{2_000_000 + number}.jpg"
        return f"web/{name}/{number // BELOW:05d}/{number:09d}.jpg"
