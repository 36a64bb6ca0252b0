"""The words of captions, by our tokenizer and by Stanford's where there is Java."""

import shutil

import pytest

from fusionkit.scoring.ptb_tokenizer import sanitize, tokenize

JAVA = shutil.which("java")
WORDS = {  # caption -> what Stanford's tokenizer says
    "A man (young) rides.": "a man -lrb- young -rrb- rides",
    'He said "hello", it\u2019s a t-shirt!': "he said hello it 's a t-shirt",
    "don't can't won't cannot wanna": "do n't ca n't wo n't can not wan na",
    "the boys' dog's toys, who'd've known": "the boys dog 's toys who 'd 've known",
    "at 3:00pm, 3 p.m. and 12:30": "at 3:00 pm 3 p.m. and 12:30",
    "Mr. Smith on Main St. near the U.S. flag etc.": "mr. smith on main st. near the u.s. flag etc.",
    "A sign that reads K. The end. Plan B. is": "a sign that reads k the end plan b. is",
    "wow!! really?! yes... no -- so - what": "wow !! really ?! yes no so what",
    "50% off, $5.00 & #1 #fun @me": "50 % off $ 5.00 & # 1 #fun @me",
    "half 1/2 or 1 1/2 or \xbd, \xa35 \u20ac6 5\xa2": "half 1/2 or 1\xa01/2 or 1/2 # 5 $ 6 5 cents",
    "his/her b-25 10-year-old AT&T a&b": "his/her b-25 10-year-old at&t a & b",
    "caf\xe9 \U0001f600na\xefve \u2764\ufe0f \u65e5\u672c": "caf\xe9 na\xefve \u2764 \u65e5\u672c",
    "[a] {b} <c> <3 :) ;-) a_b *x*": "-lsb- a -rsb- -lcb- b -rcb- <c> < 3 :-rrb- ;--rrb- a_b * x *",
    "1,000 birds,and 3.5 cats;5ft. tall": "1,000 birds and 3.5 cats 5ft tall",
    "'90s style, rock 'n' roll, O'Neil": "'90s style rock 'n' roll o'neil",
    "https://a.b/c?d=1 www.x.com foo.jpg end.Next": "https://a.b/c?d=1 www.x.com foo.jpg end.next",
    "fish &amp; chips": "fish & chips",
    "a ##ing x ##y @@ s@@hip un@@ #a": "a ## ing x ## y @@ s@@hip un@@ #a",  # word pieces of other models
    "6\u2032 2\u2032\u2032": "6 \u2032 2 \u2032 \u2032",
    "": "",
}
AWKWARD = [
    "a\rb",
    "a\vb",
    "a\fb",
    "a\u2028b",
    "a\u2029b",
    "a\x85b",
    "a\nb",
    "a\x1cb",
    "",
    " ",
    "\U0001f600",
    "\ud800 a",
    "(",
    "a\0b",
    "a " * 1000,
]


def test_ours_gives_the_known_words():
    assert tokenize(list(WORDS)) == list(WORDS.values())


@pytest.mark.skipif(JAVA is None, reason="no java on the PATH")
def test_stanfords_gives_them_too():
    assert tokenize(list(WORDS), JAVA) == list(WORDS.values())


@pytest.mark.parametrize("java", [None, pytest.param(JAVA, marks=pytest.mark.skipif(JAVA is None, reason="no java"))])
def test_an_awkward_caption_shifts_no_other(java):
    captions = [text for awkward in AWKWARD for text in (awkward, "a plain caption")]
    words = tokenize(captions, java)
    assert words[1::2] == ["a plain caption"] * len(AWKWARD)
    assert words[0:16:2] == ["a b"] * 8
    assert len(words[-2].split()) == 1000


def test_a_sanitized_caption_is_one_line():
    assert all(len(sanitize(caption).splitlines()) <= 1 for caption in AWKWARD)
