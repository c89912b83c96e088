"""The verb of an order and what it acts on, by rule: no parser, no model to download. Pure.

After the Self-Instruct paper's figure 3, which takes the root verb and its direct noun object from a parser. Here, for
English orders: the clause that only sets the scene ("Given a list of numbers, ...") and words that open an order
("please", "briefly") are passed over; the verb is the first word that is no function word, unless the sentence turns
out to be no order; its object is the last word of the first noun phrase after it, which ends at punctuation or at the
next function word ("write a short story about dogs": write, story). Checked by eye on our own seed tasks; a word that
could be either verb or noun is taken for what its place says.
"""

from __future__ import annotations

import re

_WORD = re.compile(r"[A-Za-z][A-Za-z'\u2019-]*|[^\sA-Za-z]")
_SENTENCE_END = re.compile(r"(?<=[.!?:])\s+|\n+")


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ARTICLES = _set(
    """a an the this that these those some any each every all both my your his her its our their me him us them you it
    one two three four five six seven eight nine ten several many few more most another other"""
)
_JOINTS = _set(
    """for of to in on with from about and or as by at into onto is are was were be been being over under between among
    through during without within using based given which that who whom whose what when where why how if whether so but
    than then like not no can could should would will may might must do does did has have had it they we i he she
    please because while until after before per via against regarding concerning containing including out up off
    down again below above together"""
)
_OPENINGS = _set("please kindly now then first next finally also just you your task is to")
_SETTING = _set("given based using considering imagine suppose assume if when for in from with as here")
_QUESTION = _set("what which who whom whose when where why how is are do does did can could should would will")
_NO_ORDER = _QUESTION | _set(
    """i we he she it they there here this that these those the a an my our his her its their if because although am was
    were has have had may not no yes and or but so of to in on at by imagine suppose assume somebody someone everybody
    everyone nobody yesterday today only below above before after both each every some"""
)
_LEADING = _set("for of to at on in with about from up out off down")


def is_question(instruction: str) -> bool:
    """Whether an instruction begins as a question does, or ends as one."""
    words = _WORD.findall(_skip_setting(instruction.strip()).lower())
    return instruction.rstrip().endswith("?") or bool(words and words[0] in _QUESTION)


def verb_and_noun(instruction: str) -> tuple[str, str] | None:
    """Return the verb of an order and its object in small letters, the object empty where none was found.

    None for a question, and for a text whose first sentences are no orders.
    """
    if is_question(instruction):
        return None
    for sentence in _SENTENCE_END.split(instruction.strip())[:3]:
        words = _after_openings(_WORD.findall(_skip_setting(sentence).lower()))
        if words and words[0].isascii() and words[0][0].isalpha() and words[0] not in _NO_ORDER:
            return words[0], _object(words[1:])
    return None


def _skip_setting(sentence: str) -> str:
    """Leave out a first clause that only sets the scene, up to its comma."""
    first = sentence.split(maxsplit=1)[0].lower().rstrip(",") if sentence else ""
    head, comma, rest = sentence.partition(",")
    return rest.lstrip() if first in _SETTING and comma and len(head.split()) > 1 and rest.strip() else sentence


def _after_openings(words: list[str]) -> list[str]:
    place = 0
    while place < len(words) and (words[place] in _OPENINGS or words[place] == "," or _is_manner(words[place])):
        place += 1
    return words[place:]


def _is_manner(word: str) -> bool:
    return len(word) > 4 and word.endswith("ly") and word not in ("apply", "reply", "supply", "multiply", "comply")


def _object(words: list[str]) -> str:
    """Return the last word of the first noun phrase, which up to two small words may lead to ("look at the map")."""
    place = 0
    while place < len(words) and (words[place] in _ARTICLES or words[place].isdigit()):
        place += 1
    for _ in range(2):  # "come up with a slogan"
        place += place < len(words) and words[place] in _LEADING
    phrase: list[str] = []
    for word in words[place:]:
        if word in _ARTICLES or word.isdigit():
            if phrase:
                break
            continue
        if word in _JOINTS or not word[0].isalpha() or (phrase and word.endswith("ing")):
            break
        phrase.append(word)
    return phrase[-1].removesuffix("'s").removesuffix("\u2019s") if phrase else ""
