"""Sentences of mixed lengths, the same ones for the same seed."""

from __future__ import annotations

import math
import random

SEED = 20_240
MEDIAN_WORDS = 16
SIGMA = 0.75  # of the logarithm of the word count
FEWEST_WORDS, MOST_WORDS = 5, 100

WORDS = """
the the the the of of of and and and to to to a a a in in is is was it that for on with as by at
from this be are or an not but have had has they we you their its our one two three first last many
some any each every other another such same time year day week month morning evening night people
person man woman child family friend teacher student doctor nurse lawyer farmer writer engineer
scientist government company market bank school university hospital office factory station airport
bridge road street city town village country river mountain ocean island forest garden field valley
desert coast house room kitchen window door table chair lamp bottle paper book letter newspaper
story picture music song film language word question answer problem reason result example method
theory evidence experiment research history science physics chemistry biology mathematics economics
philosophy medicine energy power electricity machine computer network software database memory
server request response signal message system process design model data information knowledge
training learning measurement temperature pressure weather rain snow storm wind winter spring summer
autumn light shadow color red green blue white black dark bright cold warm heavy simple difficult
important possible necessary different similar early late young old small large local foreign public
private national political economic social natural human quiet careful build buy sell carry choose
describe develop discover explain follow grow happen improve increase reduce learn move need offer
open close plan produce protect provide read receive remember report return send share show speak
start stop study support teach think travel understand wait walk watch work write quickly slowly
often never always usually sometimes almost nearly probably certainly together apart before after
during between against without through across toward under above because although while until
whether unless however therefore moreover nevertheless approximately extraordinary infrastructure
responsibility characteristic international environmental photosynthesis thermodynamics
archaeological
"""
VOCABULARY = WORDS.split()


def sentences(count: int) -> list[str]:
    """`count` sentences with log-normal word counts from 5 to 100."""
    source = random.Random(SEED)
    made: list[str] = []
    for _ in range(count):
        words = round(source.lognormvariate(math.log(MEDIAN_WORDS), SIGMA))
        words = min(max(words, FEWEST_WORDS), MOST_WORDS)
        made.append(" ".join(source.choices(VOCABULARY, k=words)).capitalize() + ".")
    return made


SHORTEST_TEXT, LONGEST_TEXT = 12, 230  # words; one is a little more than a token


def skewed(count: int) -> list[str]:
    """`count` texts of 16 to 256 tokens, half of them shorter than about 30."""
    source = random.Random(SEED)
    made: list[str] = []
    for _ in range(count):
        words = round(source.lognormvariate(math.log(24), 0.9))
        words = min(max(words, SHORTEST_TEXT), LONGEST_TEXT)
        made.append(" ".join(source.choices(VOCABULARY, k=words)).capitalize() + ".")
    return made
