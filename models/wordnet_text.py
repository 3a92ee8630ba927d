"""WordNet as English prose: every synset becomes a few plain sentences."""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

SYNSETS_A_DOCUMENT = 6
# Lexicographer files whose nouns name things one can count, and say "a" before.
COUNTABLE = {"05", "06", "08", "14", "15", "17", "18", "20", "25"}
DETERMINERS = {"a", "an", "the", "any", "one", "some", "all", "each", "either", "someone"}
DETERMINERS |= {"anyone", "something", "anything", "whatever", "what", "someone's", "that", "this"}
DETERMINERS |= {
    "his",
    "her",
    "its",
    "their",
    "your",
    "(",
    "two",
    "three",
    "four",
    "several",
    "many",
}
MASS_ENDINGS = ("ness", "ity", "ism", "ing", "tion", "sion", "ance", "ence", "ment", "ship", "age")
SILENT_H = ("hour", "honest", "honor", "honour", "heir")
YOO = re.compile(r"(eu|ew|u[bcfhjkqrst][aeiou]|uni([^nm]|$)|one\b|once\b)", re.IGNORECASE)


@dataclass(frozen=True)
class Synset:
    """One meaning: the words for it, its definition, examples of use, and its neighbours."""

    key: str
    lexicographer_file: str
    kind: str
    words: list[str]
    definition: str
    examples: list[str]
    pointers: list[tuple[str, str]] = field(default_factory=list)


def wordnet_documents(folder: Path, seed: int) -> Iterator[tuple[str, str]]:
    """Yields (document name, text); neighbours in the taxonomy share a document.

    The wording of each sentence is drawn with `seed`, the names do not depend on it.
    """
    for part in ("noun", "verb", "adj", "adv"):
        synsets = read_synsets(folder / f"data.{part}")
        by_key = {synset.key: synset for synset in synsets}
        for start in range(0, len(synsets), SYNSETS_A_DOCUMENT):
            group = synsets[start : start + SYNSETS_A_DOCUMENT]
            name = f"wordnet/{part}/{start}"
            rng = random.Random(f"{name}/{seed}")
            yield name, "\n".join(describe(synset, by_key, rng) for synset in group)


def read_synsets(path: Path) -> list[Synset]:
    """Every synset of one WordNet data file, in the file's order."""
    with path.open(encoding="utf-8") as lines:
        return [parse_synset(line) for line in lines if not line.startswith("  ")]


def parse_synset(line: str) -> Synset:
    """One line of a WordNet data file (the format is the manual page wndb.5WN)."""
    data, _, gloss = line.partition(" | ")
    fields = data.split()
    word_count = int(fields[3], 16)
    words = [
        re.sub(r"\(\w+\)$", "", w).replace("_", " ") for w in fields[4 : 4 + 2 * word_count : 2]
    ]
    rest = fields[4 + 2 * word_count :]
    pointers = [(rest[i], rest[i + 1]) for i in range(1, 1 + 4 * int(rest[0]), 4)]
    examples = [e.strip() for e in re.findall(r'"([^"]+)"', gloss)]
    definition = re.split(r';?\s*"', gloss, maxsplit=1)[0].strip().rstrip(";:,. ")
    return Synset(fields[0], fields[1], fields[2], words, definition, examples, pointers)


def describe(synset: Synset, by_key: dict[str, Synset], rng: random.Random) -> str:
    """A line of sentences about one synset."""
    definition = re.sub(r"^\([^)]*\)\s*", "", synset.definition)
    if not definition:
        return ""
    define = {"n": define_noun, "v": define_verb, "r": define_adverb}.get(
        synset.kind, define_adjective
    )
    sentences = [sentence(define(synset, definition, rng))]
    if synset.kind == "n":
        sentences += relations(synset, by_key, rng)
    sentences += [sentence(e) for e in synset.examples if len(e.split()) > 3]
    return " ".join(sentences)


def define_noun(synset: Synset, definition: str, rng: random.Random) -> str:
    """For instance "a dog is a member of ..."; a colon stands where "is" would limp."""
    word = synset.words[0]
    first = definition.split()[0].lower()
    countable = synset.lexicographer_file in COUNTABLE
    if word[0].isupper():
        verb = "was" if re.search(r"\(.*\d{3,4}\s*-\s*(\d|BC)", definition) else "is"
        if is_plural_list(definition):
            return f"{word} includes {definition}"
        return f"{word} {verb} {definition}" if first in DETERMINERS else f"{word}: {definition}"
    if is_plural_list(definition):
        return f"{word}: {definition}"
    if first == "the":
        return f"{bare_or_the(word)} is {definition}"
    if first in DETERMINERS:
        subject = word if is_mass(word) and not countable else with_article(word)
        return f"{subject} is {definition}"
    if countable:
        return f"{with_article(word)} is {with_article(definition)}"
    return f"{word} {rng.choice(('is', 'is', 'means'))} {definition}"


def define_verb(synset: Synset, definition: str, rng: random.Random) -> str:
    """For instance "to breathe is to draw air into, and expel out of, the lungs"."""
    return f"to {rng.choice(synset.words)} {rng.choice(('is', 'means'))} to {definition}"


def define_adjective(synset: Synset, definition: str, rng: random.Random) -> str:
    """For instance "plentiful means existing in great number or quantity"."""
    word = synset.words[0]
    if re.match(r"(of|in|at|on|relating|pertaining|being|used)\b", definition):
        return f"{word} means {definition}"
    start = rng.choice(("{} means {}", "to be {} is to be {}", "something {} is {}"))
    return start.format(word, definition)


def define_adverb(synset: Synset, definition: str, rng: random.Random) -> str:
    """For instance "to do something badly is to do it without skill"."""
    word = synset.words[0]
    if re.match(r"(in|with|without|to|by|from) ", definition) and rng.random() < 0.6:
        return f"to do something {word} is to do it {definition}"
    return f"{word} means {definition}"


def relations(synset: Synset, by_key: dict[str, Synset], rng: random.Random) -> list[str]:
    """Sentences that place a noun among its synonyms, its kinds and its parts."""
    word, sentences = synset.words[0], []
    article = with_article(word) if synset.lexicographer_file in COUNTABLE else word
    if len(synset.words) > 1 and rng.random() < 0.5:
        sentences.append(f"it is also called {join(synset.words[1:4], 'or')}")
    parents = neighbours(synset, by_key, "@")
    if parents and not word[0].isupper() and rng.random() < 0.3:
        sentences.append(f"{article} is {rng.choice(('a kind', 'a sort'))} of {parents[0]}")
    kinds = neighbours(synset, by_key, "~")
    if len(kinds) > 1 and not word[0].isupper() and rng.random() < 0.6:
        listed = rng.sample(kinds, min(len(kinds), 4))
        sentences.append(f"kinds of {word} are {join(listed, 'and')}")
    parts = neighbours(synset, by_key, "%p")
    if parts and rng.random() < 0.6:
        listed = [with_article(p) for p in parts[:4]]
        owner = word if word[0].isupper() else article
        sentences.append(f"{owner} has {join(listed, 'and')}")
    return [sentence(s) for s in sentences]


def neighbours(synset: Synset, by_key: dict[str, Synset], symbol: str) -> list[str]:
    """The words that a WordNet pointer leads to: "@" to what it is, "~" to its kinds."""
    return [
        by_key[key].words[0] for kind, key in synset.pointers if kind == symbol and key in by_key
    ]


def with_article(phrase: str) -> str:
    """The phrase after "a" or "an", as it is said; a name, or one that has an article, as it is."""
    first = phrase.split()[0]
    if first.lower() in DETERMINERS or first[0].isupper():
        return phrase
    vowel = first[0] in "aeio" or (first[0] == "u") or first.startswith(SILENT_H)
    return f"an {phrase}" if vowel and not YOO.match(first) else f"a {phrase}"


def bare_or_the(word: str) -> str:
    """The word after "the", or alone where it takes no article."""
    return word if is_mass(word) else f"the {word}"


def is_mass(word: str) -> bool:
    """Whether a word looks like one that takes no article ("kindness", "gravity")."""
    return word.endswith(MASS_ENDINGS)


def is_plural_list(definition: str) -> bool:
    """Whether a definition lists members ("dogs; wolves; jackals; foxes")."""
    first = re.split(r"[\s;,]", definition)[0]
    return first.endswith("s") and not first.endswith(("ss", "us", "is", "'s", "ous"))


def join(items: list[str], word: str) -> str:
    """ "a, b and c"."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} {word} {items[-1]}"


def sentence(text: str) -> str:
    """The text with a capital first letter and a full stop."""
    text = text.strip()
    text = text[0].upper() + text[1:]
    return text if text[-1] in ".!?" else f"{text}."
