"""Words as the official caption tools see them: Stanford's Penn Treebank tokenizer, lower case, without punctuation.

With Java the tokenizer itself runs, as pycocoevalcap 1.2 runs it, but without a file in the package's folder. Without Java
ours does, written from what the other was seen to do. Known to differ: two curly quotes in a row, which Stanford's keeps as
a word, a faulty n't ("green't"), and other knots of punctuation inside a word.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from fusionkit.scoring.java import answer_lines

LINE_BREAKS = re.compile("[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")  # at which the tools would start another caption

# what pycocoevalcap removes; brackets are there in upper case only, so that "-lrb-" stays
PUNCTUATION = frozenset(["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", *".?!,:;-", "--", "..."])

# words that keep their dot: anywhere, where written with a capital, before a number
ABBREVIATIONS = re.compile(
    r"adm|al|ala|alex|apr|ariz|assn|assoc|atty|attys|aug|ave|bancorp|bhd|bldg|blvd|brig|bros|calif|capt|cf|cie|"
    r"cmdr|co|col|colo|comdr|conn|corp|cos|cpl|ct|dak|dec|dept|det|dr|drs|esq|est|etc|ext|feb|fla|fri|ft|ga|gen|"
    r"gov|govs|hon|inc|ind|intl|jan|jos|jr|jul|jun|kan|kans|ky|lieut|lt|ltd|maj|md|messrs|mfg|mich|minn|mo|mon|"
    r"mont|mr|mrs|ms|mt|natl|neb|nev|nov|oct|okla|penn|pfc|ph|plc|pres|prof|profs|pty|pvt|rd|rep|reps|rev|rt|sen|"
    r"sens|sep|sept|seq|sgt|spc|sq|sr|st|ste|supt|supts|sys|tel|tenn|tex|thu|thurs|treas|tue|tues|univ|va|vs|vt|"
    r"wed|wis|wisc|wm|wyo"
)
CAPITAL_ABBREVIATIONS = re.compile("ark|az|del|ill|la|mar|mass|miss|ore|pa|wash")
NUMBER_ABBREVIATIONS = re.compile("art|ca|fig|figs|no|nos|op|pp|prop")
# after a single letter and its dot these begin a sentence, also on the next line
SENTENCE = re.compile(
    r"\s\s|\s(?:A|About|After|An|As|At|But|He|Her|Here|However|If|In|It|Many|More|Now|One|Other|She|So|Some|Such|That|The|Their|"
    r"Then|There|These|They|This|We|What|When|While|Yet|You)\s"
)
SPLIT = {
    "cannot": ["can", "not"],
    "gonna": ["gon", "na"],
    "wanna": ["wan", "na"],
    "gotta": ["got", "ta"],
    "gimme": ["gim", "me"],
    "lemme": ["lem", "me"],
    "'tis": ["'t", "is"],
    "'twas": ["'t", "was"],
    "more'n": ["more", "'n"],
    "y'all": ["y'", "all"],
}
REPLACED = dict(
    pair.split("=")
    for pair in (
        "(=-lrb-",
        ")=-rrb-",
        "[=-lsb-",
        "]=-rsb-",
        "{=-lcb-",
        "}=-rcb-",
        "£=#",
        "€=$",
        "¢=cents",
        "½=1/2",
        "¼=1/4",
        "¾=3/4",
    )
)
ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&apos;": "'", "&nbsp;": " "}
QUOTES = str.maketrans(
    dict.fromkeys("\u2018\u2019\u201b\u2039\u203a", "'") | dict.fromkeys("\u201c\u201d\xab\xbb", '"')
)

L = r"(?:(?![½¼¾])[^\W\d_]|[\u0300-\u036f\u0900-\u0dff\u0e00-\u0e7f])"  # a letter
A = rf"(?:{L}|\d)"
TOKEN = re.compile(
    rf"""
      (?P<spaced> </?[A-Za-z!?][^<>]*> | (?:\d{{1,4}}[- ])?\d{{1,4}}/\d{{1,4}}(?![\w/]) )
    | (?P<dotted> (?<!\w){L}+\.(?!\w) )
    | (?P<whole>
        https?://[^\s"<>|()]*[^\s"<>|().,;:!?] | www\.[^\s"<>|()]*[^\s"<>|().,;:!?/] | \w[\w.+-]*@\w+(?:\.\w+)*
      | [A-Za-z](?:\.[A-Za-z])+\.(?:-{A}+)*(?!\w)
      | 'n' | (?:o'clock|ma'am|li'l|ol'|'em|'til|'cause|'n|[odl]'{L}+|c\+\+)(?!\w) | '\d\ds?(?![\w"])
      | (?:ph|ed)\.d\.(?!\w) | (?-i:US|A|C)\$ | 't(?:is|was)(?!\w) | y'all(?!\w) | more'n(?!\w)
      | {L}+(?=n't(?!\w)) | n't(?!\w) | '(?:s|m|d|ll|re|ve)(?!\w)
      | [-+]?(?:\d+(?:[.,:]\d+)+|(?:[.,:]\d+)+) | [-+]\d+(?!\w)
      | \#{{2,}} | {A}+@{{2,}}{A}* | @{{2,}} | [@\#]{L}\w* | (?-i:[A-Z]+(?:&[A-Z]+)+)(?!\w)
      | {A}+(?:(?:[-/!?_]|(?<!\d)\.(?!\d)){A}+)*
      | [:;=]-?[()\[\]DP](?!\w) | \^_\^ | [!?]+ | \*+ | _+ | << | >>
      )
    | (?P<dashes> -+ | [\u2013\u2014\u2015] ) | (?P<dots> \.+ | […‥"] ) | (?P<other> \S )
    """,
    re.VERBOSE | re.IGNORECASE,
)


def sanitize(caption: str) -> str:
    """One line that can be encoded: what a tool might take for the end of a line is a space, a lone surrogate is "?"."""
    return LINE_BREAKS.sub(" ", caption).encode("utf-8", "replace").decode("utf-8").replace("\0", " ")


def tokenize(captions: Sequence[str], java: str | None = None) -> list[str]:
    """The words of each caption, joined by single spaces; by Stanford's tokenizer where ``java`` names the program."""
    lines = [sanitize(caption) for caption in captions]
    split = (
        _stanford(lines, java)
        if java
        else [list(words_of(line, after)) for line, after in zip(lines, [*lines[1:], ""], strict=False)]
    )
    return [" ".join(word for word in words if word not in PUNCTUATION) for words in split]


def words_of(line: str, after: str = "") -> Iterator[str]:
    """The tokens of one line in lower case, less the punctuation that is removed anyway; ``after`` is the next line."""
    for entity, character in ENTITIES.items():
        line = line.replace(entity, character)
    line = "".join(_readable(character) for character in line.translate(QUOTES))
    for match in TOKEN.finditer(line):
        text = match[0].lower()
        if match["spaced"]:
            yield text.replace(" ", "\xa0")
        elif match["dotted"]:
            stem = text[:-1]
            yield from [text] if _keeps_dot(match[0], f"{line[match.end() :]}\n{after}\n") else SPLIT.get(stem, [stem])
        elif match["whole"]:
            yield from SPLIT.get(text) or [text.replace("(", "-lrb-").replace(")", "-rrb-")]
        elif match["other"]:
            yield REPLACED.get(text, text)


def _keeps_dot(word: str, rest: str) -> bool:
    """Whether the dot belongs to the word: a single letter, an abbreviation, or any word before a comma."""
    stem = word[:-1].lower()
    return bool(
        (len(stem) == 1 and stem.isascii() and not SENTENCE.match(rest))
        or ABBREVIATIONS.fullmatch(stem)
        or (CAPITAL_ABBREVIATIONS.fullmatch(stem) and word[0].isupper())
        or (NUMBER_ABBREVIATIONS.fullmatch(stem) and rest.lstrip()[:1].isdigit())
        or rest.startswith((",", ";", ":"))
    )


def _readable(character: str) -> str:
    """A space for all kinds of them, and for what the tokenizer cannot read: controls, emoji and all else beyond 16 bits."""
    category = unicodedata.category(character)
    if category in ("Zs", "Cc") or character > "\uffff" or character == "\u200b":
        return " "
    return "" if character in "\u00ad\ufe0e\ufe0f\u200d\ufffd" else character


def _stanford(lines: Sequence[str], java: str) -> list[list[str]]:
    from pycocoevalcap.tokenizer import ptbtokenizer

    command = [java, "-cp", ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR, "edu.stanford.nlp.process.PTBTokenizer"]
    command += ["-preserveLines", "-lowerCase", "-encoding", "utf-8"]
    return [line.rstrip().split(" ") for line in answer_lines(command, Path(ptbtokenizer.__file__).parent, lines)]
