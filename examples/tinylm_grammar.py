"""The grammar of the sentences that the built-in language model ``tinylm`` speaks.

One table of rules serves both ways: :func:`sentence` and :func:`story` draw from it, and :func:`accepts`
parses exactly what they can draw. Subjects and verbs agree in number, ``a`` and ``an`` go by the sound that
follows, ``who`` speaks of the living and ``that`` of things, and relative clauses nest :data:`DEPTH` deep at
most.

    python tinylm_grammar.py generate 5     prints five stories
    python tinylm_grammar.py check < FILE   a story a line; exit status 1 where a sentence is none of these
"""

from __future__ import annotations

import itertools
import random
import re
import sys
from functools import cache

DEPTH = 2
LONGEST_STORY = 6

Rules = dict[str, list[tuple[float, str]]]
"""What each ``<symbol>`` can be: weights, and words and symbols with blanks between."""

NUMBERS = ("singular", "plural")
KINDS = ("living", "thing")
SOUNDS = ("vowel", "consonant")

# A form that is not the usual one stands after a slash.
NOUNS = {
    "living": (
        "sailor farmer baker teacher child/children queen king giant fox/foxes wolf/wolves owl elephant cat"
        " dog bird mouse/mice artist woman/women explorer soldier doctor robot pirate"
    ),
    "thing": (
        "boat lamp apple letter bridge tree island orange book bell key basket umbrella egg stone map ring"
        " coat kite clock drum flower box/boxes knife/knives"
    ),
}
NAMES = "Anna Tom Clara Hugo Maya Ivan Nora Felix"
ADJECTIVES = {
    "living": "old young happy tired angry brave small quiet honest clever eager hungry lonely elegant kind",
    "thing": "old red blue green heavy empty ancient broken golden useful shiny small expensive wooden ugly",
}
SLEEP = "sleep sing dance laugh wait smile rest arrive listen walk work dream run swim"
SEE = "see find carry/carries follow watch/watches remember admire paint hide want like need"
HELP = "thank greet help teach/teaches visit call miss/misses invite"
GIVE = "give send show bring offer sell lend"
VERBS = {"sleep": SLEEP, "see": SEE, "help": HELP, "give": GIVE}
PLACES = "river forest village harbour mountain garden market castle ocean valley station"

SOUNDS_OTHERWISE = {"honest": "vowel", "useful": "consonant"}
"""Words whose first letter does not tell whether ``a`` or ``an`` goes before them."""


def sound(word: str) -> str:
    """``vowel`` where ``an`` goes before the word, else ``consonant``."""
    return SOUNDS_OTHERWISE.get(word, "vowel" if word[0] in "aeiou" else "consonant")


def _forms(words: str) -> list[tuple[str, str]]:
    """Each word and its form with an ``s``."""
    pairs = (word.partition("/") for word in words.split())
    return [(word, other or word + "s") for word, _, other in pairs]


def _evenly(words: str | list[str]) -> list[tuple[float, str]]:
    return [(1.0, word) for word in (words.split() if isinstance(words, str) else words)]


def _lexicon() -> Rules:
    rules: Rules = {
        "<name>": _evenly(NAMES),
        "<place>": _evenly(
            [f"{at} the {place}" for at in ("in", "near", "beyond") for place in PLACES.split()]
        ),
        "<often>": _evenly("often never always sometimes"),
        "<how>": _evenly("quietly slowly happily today alone again"),
        "<modal>": _evenly("can will must"),
        "<the singular>": _evenly("the the the every this that my her his"),
        "<the plural>": _evenly("the the the these those some many two three her his"),
        "<do singular>": [(1, "does")],
        "<do plural>": [(1, "do")],
        "<be singular>": [(1, "is")],
        "<be plural>": [(1, "are")],
    }
    for kind in KINDS:
        forms = _forms(NOUNS[kind])
        rules[f"<noun singular {kind}>"] = _evenly([one for one, _ in forms])
        rules[f"<noun plural {kind}>"] = _evenly([many for _, many in forms])
        rules[f"<adjective {kind}>"] = _evenly(ADJECTIVES[kind])
        for so in SOUNDS:
            rules[f"<noun {so} {kind}>"] = _evenly([one for one, _ in forms if sound(one) == so])
            rules[f"<adjective {so} {kind}>"] = _evenly(
                [w for w in ADJECTIVES[kind].split() if sound(w) == so]
            )
    for verb, words in VERBS.items():
        rules[f"<{verb} plural>"] = _evenly([plain for plain, _ in _forms(words)])
        rules[f"<{verb} singular>"] = _evenly([singular for _, singular in _forms(words)])
    return rules


def _noun_phrases(depth: int) -> Rules:
    """Those with at most ``depth`` relative clauses in each other."""
    rules: Rules = {}
    for number, kind in itertools.product(NUMBERS, KINDS):
        phrase = f"<phrase {number} {kind}"
        rules[f"{phrase} {depth}>"] = [(6, f"{phrase}>")]
        if depth == 0:
            continue
        rules[f"{phrase} {depth}>"] += [(1, f"{phrase}> <which {number} {kind} {depth}>")]
        below = depth - 1
        state = f"<state {number} {kind}>"
        rules[f"<which {number} {kind} {depth}>"] = (
            [(3, f"who <act {number} {below}>"), (1, f"who {state}")]
            if kind == "living"
            else [(1, f"that {state}")]
            + [(1.5, f"that <phrase {other} living {below}> <see {other}>") for other in NUMBERS]
        )
    living = [f"<phrase {number} living {depth}>" for number in NUMBERS]
    things = [f"<phrase {number} thing {depth}>" for number in NUMBERS]
    rules[f"<someone {depth}>"] = [
        (3, living[0]),
        (2, living[1]),
        (1, "<name>"),
        (0.5, "him"),
        (0.5, "her"),
        (0.5, "them"),
    ]
    rules[f"<something {depth}>"] = [(3, things[0]), (2, things[1])]
    return rules


def _plain_phrases() -> Rules:
    """Noun phrases without relative clauses, and what is said of them with ``is`` and ``are``."""
    rules: Rules = {}
    for kind in KINDS:
        rules[f"<phrase singular {kind}>"] = [
            (4, f"<the singular> <noun singular {kind}>"),
            (2, f"<the singular> <adjective {kind}> <noun singular {kind}>"),
            (0.4, f"an <noun vowel {kind}>"),
            (0.8, f"an <adjective vowel {kind}> <noun singular {kind}>"),
            (1.4, f"a <noun consonant {kind}>"),
            (0.8, f"a <adjective consonant {kind}> <noun singular {kind}>"),
        ]
        rules[f"<phrase plural {kind}>"] = [
            (3, f"<the plural> <noun plural {kind}>"),
            (2, f"<the plural> <adjective {kind}> <noun plural {kind}>"),
        ]
        for number in NUMBERS:
            rules[f"<state {number} {kind}>"] = [
                (3, f"<be {number}> <adjective {kind}>"),
                (1, f"<be {number}> not <adjective {kind}>"),
                (1, f"<be {number}> <adjective {kind}> and <adjective {kind}>"),
                (2, f"<be {number}> <place>"),
            ]
    return rules


def _acts(depth: int) -> Rules:
    """Verbs in both numbers, with what belongs to them."""
    rules: Rules = {}
    for number in NUMBERS:
        rules[f"<act {number} {depth}>"] = [
            (1, f"<sleep {number}>"),
            (1, f"<sleep {number}> <how>"),
            (1, f"<sleep {number}> <place>"),
            (2, f"<see {number}> <something {depth}>"),
            (1, f"<see {number}> <someone {depth}>"),
            (1, f"<help {number}> <someone {depth}>"),
            (1, f"<give {number}> <someone 0> <something {depth}>"),
            (0.7, f"<give {number}> <something {depth}> to <someone 0>"),
        ]
    return rules


def _sentences() -> Rules:
    rules: Rules = {
        "<subject singular>": [
            (5, f"<phrase singular living {DEPTH}>"),
            (1, "<name>"),
            (0.5, "he"),
            (0.5, "she"),
        ],
        "<subject plural>": [
            (4, f"<phrase plural living {DEPTH}>"),
            (0.6, "they"),
            (0.7, "<name> and <phrase singular living>"),
            (0.7, "<phrase singular living> and <phrase singular living>"),
            (0.3, "<name> and <name>"),
        ],
        "<sentence>": [
            (8, "<clause> ."),
            (1, "<clause> , and <clause> ."),
            (0.8, "when <clause> , <clause> ."),
            (0.8, "<clause> because <clause> ."),
            (0.6, "<place> , <clause> ."),
        ],
        "<clause>": [],
    }
    for number, weight in (("singular", 3), ("plural", 2)):
        rules["<clause>"] += [
            (weight * 4, f"<subject {number}> <does {number}>"),
            (weight, f"<phrase {number} thing {DEPTH}> <state {number} thing>"),
        ]
        rules[f"<does {number}>"] = [
            (8, f"<act {number} {DEPTH}>"),
            (1, f"<often> <act {number} {DEPTH}>"),
            (1, f"<do {number}> not <act plural 1>"),
            (1.5, "<modal> <act plural 1>"),
            (1.5, f"<state {number} living>"),
            (1, f"<act {number} 0> and <act {number} 0>"),
        ]
    return rules


def _all() -> Rules:
    rules = {**_lexicon(), **_plain_phrases(), **_sentences()}
    for depth in range(DEPTH + 1):
        rules |= {**_noun_phrases(depth), **_acts(depth)}
    return rules


RULES = _all()


class _Choice:
    """The alternatives of a symbol, ready to be drawn from."""

    def __init__(self, alternatives: list[tuple[float, str]]) -> None:
        # Symbols have blanks too, but only between their brackets.
        self.parts = [re.findall(r"<[^>]*>|\S+", text) for _, text in alternatives]
        self.upto = list(itertools.accumulate(weight for weight, _ in alternatives))
        self.words = {parts[0] for parts in self.parts if len(parts) == 1 and parts[0] not in RULES}


CHOICES = {symbol: _Choice(alternatives) for symbol, alternatives in RULES.items()}

TOPICS = [{one, many} for kind in KINDS for one, many in _forms(NOUNS[kind])] + [
    {name} for name in NAMES.split()
]
"""What a story can be about: the forms of a noun, or a name."""

CONSTANT = 0.6
"""How often a story speaks of its topic where it could."""


def _draw(symbol: str, source: random.Random, topic: set[str], into: list[str]) -> None:
    choice = CHOICES.get(symbol)
    if choice is None:
        into.append(symbol)
        return
    known = choice.words & topic
    if known and source.random() < CONSTANT:
        into.extend(known)
        return
    for part in source.choices(choice.parts, cum_weights=choice.upto)[0]:
        _draw(part, source, topic, into)


def _written(words: list[str]) -> str:
    """Words as a sentence is written: a capital first, and marks close to what they follow."""
    text = " ".join(words).replace(" ,", ",").replace(" .", ".")
    return text[0].upper() + text[1:]


def phrase(source: random.Random, topic: set[str]) -> str:
    """Words for somebody or something, about the topic where the draw allows."""
    words: list[str] = []
    _draw(
        source.choice(["<phrase singular living>", "<phrase plural living>", "<name>"]), source, topic, words
    )
    return " ".join(words)


def sentence(source: random.Random, topic: set[str] | None = None) -> str:
    """A sentence, from its capital to its full stop."""
    words: list[str] = []
    _draw("<sentence>", source, topic or set(), words)
    return _written(words)


def story(source: random.Random, topic: set[str] | None = None) -> str:
    """Between one and :data:`LONGEST_STORY` sentences about one topic, with blanks between."""
    about = topic or source.choice(TOPICS)
    return " ".join(sentence(source, about) for _ in range(source.randint(1, LONGEST_STORY)))


def accepts(text: str) -> bool:
    """Whether ``text`` is one sentence of the grammar, written as :func:`sentence` writes it."""
    words = re.findall(r"[A-Za-z]+|\S", text)
    if not words or _written(words) != text:
        return False

    @cache
    def ends(symbol: str, start: int) -> frozenset[int]:
        """Where in ``words`` the symbol can end when it starts there. No symbol begins with itself."""
        choice = CHOICES.get(symbol)
        if choice is None:
            return frozenset({start + 1} if _fits(symbol, words, start) else ())
        found: set[int] = set()
        for parts in choice.parts:
            reached = {start}
            for part in parts:
                reached = {end for at in reached for end in ends(part, at)}
            found |= reached
        return frozenset(found)

    return len(words) in ends("<sentence>", 0)


def _fits(symbol: str, words: list[str], at: int) -> bool:
    if at >= len(words):
        return False
    return words[at] == (symbol[0].upper() + symbol[1:] if at == 0 else symbol)


def sentences(text: str) -> list[str]:
    """The sentences of a story, cut after their full stops; what follows the last one is a sentence too."""
    return [part for part in re.split(r"(?<=\.) ", text) if part]


def main(arguments: list[str]) -> int:
    """The command line."""
    if arguments[:1] == ["generate"] and len(arguments) == 2:
        source = random.Random()
        for _ in range(int(arguments[1])):
            sys.stdout.write(story(source) + "\n")
        return 0
    if arguments != ["check"]:
        sys.stderr.write(f"{__doc__}\n")
        return 2
    wrong = [found for line in sys.stdin for found in sentences(line.rstrip("\n")) if not accepts(found)]
    for found in wrong:
        sys.stdout.write(f"not of the grammar: {found}\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
