"""Captions: how near is a generated one to those that people wrote? By the scorers of pycocoevalcap, one by one.

Its own entry point downloads models for SPICE and writes into its own folder; its scorers need neither. Without Java
there is no METEOR, and the words come from our tokenizer instead of Stanford's (``ptb_tokenizer``).
"""

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

from fusionkit.data.sample import Sample
from fusionkit.errors import DataError
from fusionkit.files.unicode import readable
from fusionkit.scoring.base import BaseScorer, Function, Tokenize
from fusionkit.scoring.corpus_metrics import ORDERS
from fusionkit.scoring.java import answer_lines
from fusionkit.scoring.ptb_tokenizer import tokenize
from fusionkit.scoring.record_schema import RecordSchema, is_text
from fusionkit.scoring.records import Record, index_records
from fusionkit.scoring.sample_scores import Row, SampleScores
from fusionkit.scoring.text_only_models import captions_of, guesses

NO_JAVA = "no java on the PATH"
# shares of the words of English references, if there are enough: other letters at most, common words at least (40% of COCO's)
MOST_FOREIGN, LEAST_COMMON, ENOUGH_WORDS = 0.05, 0.1, 10
ENGLISH = frozenset(
    ["a", "an", "and", "are", "at", "by", "from", "in", "is", "of", "on", "that", "the", "to", "two", "with"]
)
Said = Sequence[str]  # of each image, the caption
Wanted = Sequence[Sequence[str]]  # and those of people


class Bleu(BaseScorer):
    """BLEU-4 and BLEU-1 in percent over all images with captions; for use while training: Java is not asked.

    An image without a record counts as an empty caption. A caption's own score is its ROUGE-L.
    """

    schema = (RecordSchema("captions", "image_id", "caption", "a text", is_text, of_images=True),)
    metrics: Mapping[str, bool] = MappingProxyType({"caption_bleu4": True, "caption_bleu1": True})

    def rows(self, records: Sequence[Record], samples: Sequence[Sample]) -> SampleScores:
        """One row an image."""
        said, wanted = _words(*_paired(records, samples))
        if not said:
            return SampleScores([])
        return SampleScores(_rows(samples, rouge(said, wanted), {}, {"caption_bleu": bleu_counts(said, wanted)}))

    def notes(self, samples: Sequence[Sample]) -> Mapping[str, str]:
        """What the scorers of captions, English as they are, do not do justice to in these references."""
        texts = [[text.text for text in sample.texts["captions"]] for sample in samples if sample.texts.get("captions")]
        return {name: note for name, note in notes_on(_words([], texts)[1]).items() if name != "cider"}

    def baselines(
        self,
        train: Sequence[Sample],
        samples: Sequence[Sample],
        records: Sequence[Record],
        tokenize: Tokenize,
        score: Function,
    ) -> dict[str, float]:
        """The commonest training caption, said of every image; there is no text to read, so the two guessers are one."""
        counts = Counter(caption.text for caption in captions_of(train))
        if not counts:
            return {}
        commonest = min(counts, key=lambda text: (-counts[text], text))
        asked = [sample for sample in samples if sample.texts.get("captions")]
        scores = score([{"image_id": sample.image_id, "caption": commonest} for sample in asked], samples)
        return guesses(scores, scores)


@dataclass(frozen=True)
class Captions(Bleu):
    """Captions by BLEU-1 to 4, METEOR, ROUGE-L and CIDEr-D, in percent, and by SPICE where its models are there.

    A caption's own score is its ROUGE-L. With ``java`` null METEOR and Stanford's tokenizer run where there is a Java.
    """

    java: bool | None = None

    metrics = MappingProxyType(
        dict.fromkeys(("cider", "rouge_l", "spice", *(f"bleu_{order}" for order in ORDERS), "meteor"), True)
    )
    headlines = ("cider", "bleu_4")

    def rows(self, records: Sequence[Record], samples: Sequence[Sample]) -> SampleScores:
        """One row an image."""
        java = None if self.java is False else shutil.which("java")
        if self.java and not java:
            raise DataError(f"java=true, but there is {NO_JAVA}; install Java 8 or newer, or score without METEOR")
        said, wanted = _words(*_paired(records, samples), java)
        values = {"rouge_l": rouge(said, wanted), "cider": cider(said, wanted)}
        sums = {"bleu": bleu_counts(said, wanted)}
        lack = NO_JAVA if self.java is None else "java=false"
        notes = {"tokenizer": "Stanford's PTB tokenizer" if java else f"ours, which stands in for Stanford's ({lack})"}
        notes |= notes_on(wanted)
        if java:
            sums["meteor"] = meteor_counts(said, wanted, java)
        else:
            notes["meteor"] = f"missing: METEOR is a Java program ({lack})"
        if reason := _lack_of_spice(java):
            notes["spice"] = f"missing: {reason}"
        else:
            values["spice"] = spice(said, wanted)
        return SampleScores(_rows(samples, values["rouge_l"], values, sums), notes)


def notes_on(wanted: Wanted) -> dict[str, str]:
    """The same of tokenized references: another language than English, and one image alone."""
    words = [word for references in wanted for text in references for word in text.split()]
    foreign = sum(not word.isascii() for word in words)
    common = sum(word in ENGLISH for word in words)
    notes = {}
    is_enough = len(words) >= ENOUGH_WORDS or foreign > MOST_FOREIGN * len(words)
    if is_enough and common < LEAST_COMMON * len(words):
        notes["language"] = (
            f"the references do not read as English ({common:,} of {len(words):,} words are common English ones, {foreign:,} "
            "have other letters): METEOR's stems, synonyms and function words are English, and to every metric a word is what "
            "stands between spaces"
        )
    if len(wanted) == 1:
        notes["cider"] = (
            "0 by its formula: of one image's references no word is rarer than another; score all images together"
        )
    return notes


def bleu_counts(said: Said, wanted: Wanted) -> list[list[float]]:
    """Of each image the ten numbers that ``corpus_metrics.bleu`` reads."""
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer

    scorer = BleuScorer(n=4)
    for caption, references in zip(said, wanted, strict=True):
        scorer += (caption, list(references))
    return [
        [each["testlen"], min((abs(length - each["testlen"]), length) for length in each["reflen"])[1]]
        + each["guess"]
        + each["correct"]
        for each in scorer.ctest
    ]


def rouge(said: Said, wanted: Wanted) -> list[float]:
    """ROUGE-L of each image in percent."""
    from pycocoevalcap.rouge.rouge import Rouge

    scorer = Rouge()
    return [100 * scorer.calc_score([caption], references) for caption, references in zip(said, wanted, strict=True)]


def cider(said: Said, wanted: Wanted) -> list[float]:
    """CIDEr-D of each image in percent. What a word counts depends on all the references; of one image it is 0."""
    from pycocoevalcap.cider.cider import Cider

    if not any(words for references in wanted for words in references):
        return [0.0] * len(said)
    return [100 * float(score) for score in Cider().compute_score(*_by_image(said, wanted))[1]]


def meteor_counts(said: Said, wanted: Wanted, java: str) -> list[list[float]]:
    """Of each image the numbers that ``corpus_metrics.meteor`` reads, as pycocoevalcap's ``meteor.py`` asks for them."""
    from pycocoevalcap.meteor import meteor

    folder = Path(meteor.__file__).parent
    command = [java, "-Xmx2G", "-jar", meteor.METEOR_JAR, "-", "-", "-stdio", "-l", "en", "-norm"]
    parts = ([*references, caption] for caption, references in zip(said, wanted, strict=True))
    lines = [" ||| ".join(["SCORE", *(text.replace("|||", "") for text in texts)]) for texts in parts]
    return [[float(number) for number in line.split()] for line in answer_lines(command, folder, lines)]


def spice(said: Said, wanted: Wanted) -> list[float]:
    """SPICE of each image in percent."""
    from pycocoevalcap.spice.spice import Spice

    return [100 * float(score["All"]["f"]) for score in Spice().compute_score(*_by_image(said, wanted))[1]]


def _lack_of_spice(java: str | None) -> str | None:
    """Why there is no SPICE: the package would download its models, 400 MB, when it is first asked."""
    spec = find_spec("pycocoevalcap.spice")
    folder = Path(next(iter(spec.submodule_search_locations or [])) if spec else "") / "lib"
    if not java:
        return "SPICE is a Java program"
    if not all((folder / f"stanford-corenlp-3.6.0{part}.jar").is_file() for part in ("", "-models")):
        return f"its models stanford-corenlp-3.6.0.jar and -models.jar are not in {folder}"
    return None


def _rows(
    samples: Sequence[Sample],
    scores: Sequence[float],
    values: Mapping[str, Sequence[float]],
    sums: Mapping[str, Sequence[list[float]]],
) -> list[Row]:
    """The rows of the images that have captions, from columns."""
    asked = [sample for sample in samples if sample.texts.get("captions")]
    return [
        {
            "id": sample.image_id,
            "score": scores[at],
            "image_id": sample.image_id,
            "values": {name: numbers[at] for name, numbers in values.items()},
            "sums": {name: numbers[at] for name, numbers in sums.items()},
        }
        for at, sample in enumerate(asked)
    ]


def _paired(records: Sequence[Record], samples: Sequence[Sample]) -> tuple[list[str], list[list[str]]]:
    """Of each image with captions, the one given and those of people."""
    given = index_records(records, "image_id", {sample.image_id for sample in samples})
    asked = [sample for sample in samples if sample.texts.get("captions")]
    nothing = {"caption": ""}
    said = [readable(given.get(sample.image_id, nothing)["caption"]) for sample in asked]
    return said, [[text.text for text in sample.texts["captions"]] for sample in asked]


def _words(said: Said, wanted: Wanted, java: str | None = None) -> tuple[list[str], list[list[str]]]:
    """The same in words; captions and references are tokenized apart, as officially."""
    flat = iter(tokenize([text for references in wanted for text in references], java))
    return tokenize(said, java), [[next(flat) for _ in references] for references in wanted]


def _by_image(said: Said, wanted: Wanted) -> tuple[Mapping[int, list[str]], Mapping[int, list[str]]]:
    """The references and the captions as pycocoevalcap takes them."""
    return {at: list(texts) for at, texts in enumerate(wanted)}, {at: [text] for at, text in enumerate(said)}
