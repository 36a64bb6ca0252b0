"""All words that the texts of the shapes world are made of."""

from fusionkit.data.shapes.meaning import EXTREMES, NUMBERS, PHRASES, PLURALS, SUPERLATIVES
from fusionkit.data.shapes.scene import COLORS, SHAPES, SIZES

FUNCTION_WORDS = """
a all among an and any are at bigger bottom can color else how in including is its just larger left many nothing object
objects of on only or own picture right see shape shapes single size smaller than the them there
to top what where with you
"""
VOCABULARY = tuple(
    sorted(
        {*FUNCTION_WORDS.split(), *COLORS, *SHAPES, *SIZES, *EXTREMES, *SUPERLATIVES, *NUMBERS}
        | {PLURALS.get(shape, shape + "s") for shape in SHAPES}
        | {word for phrases in PHRASES.values() for phrase in phrases for word in phrase.split()}
    )
)
