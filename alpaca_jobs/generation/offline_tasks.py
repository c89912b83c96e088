"""Tasks by rule for the offline demo teacher: each maker draws words from tables and works out the right answer.

A maker is a function of a random generator alone and returns (instruction, input, output). Together they can make
some millions of instructions that differ in more than a word.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import cache
from importlib import resources
from typing import Any

Task = tuple[str, str, str]
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


@cache
def phrases() -> dict[str, list[Any]]:
    """Return the tables of offline_phrases.json by name; every entry is a string or a short list."""
    text = resources.files("alpaca_jobs.generation").joinpath("offline_phrases.json").read_text(encoding="utf-8")
    tables: dict[str, list[Any]] = json.loads(text)
    return tables


def draw(rng: random.Random, table: str) -> Any:
    """Return one entry of a table."""
    return rng.choice(phrases()[table])


def make_task(rng: random.Random) -> Task:
    """Return one good task.

    Most get a sentence of context: without one, a maker's instructions share so many words that after a few hundred
    rows nearly every new one counts as a duplicate.
    """
    instruction, given, output = rng.choice(MAKERS)(rng)
    place = rng.random()
    if place < 0.5:
        instruction = f"{_context(rng)} {instruction}"
    elif place < 0.9:
        instruction = f"{instruction} {_context(rng)}"
    return instruction, given, output


def _context(rng: random.Random) -> str:
    """Return a sentence that says who wants the task done, and why."""
    shop, goods = draw(rng, "trades")
    values = {
        "name": draw(rng, "names"),
        "place": draw(rng, "places"),
        "day": rng.choice(DAYS),
        "role": draw(rng, "roles"),
        "person": draw(rng, "people"),
        "group": draw(rng, "groups"),
        "activity": draw(rng, "activities")[0],
        "topic": draw(rng, "topics")[0],
        "reason": draw(rng, "requests")[1],
        "purpose": draw(rng, "purposes"),
        "shop": shop,
        "goods": goods,
    }
    sentence = str(draw(rng, "contexts")).format(**values)
    return sentence[0].upper() + sentence[1:]


def _about_topic(rng: random.Random) -> Task:
    topic, facts = draw(rng, "topics")
    form, audience, constraint = draw(rng, "forms"), draw(rng, "audiences"), draw(rng, "constraints")
    instruction = f"{form} {topic} for {audience} {constraint}."
    return instruction, "", " ".join(facts[: rng.choice((2, 3))])


def _as_role(rng: random.Random) -> Task:
    topic, facts = draw(rng, "topics")
    role, audience, constraint = draw(rng, "roles"), draw(rng, "audiences"), draw(rng, "constraints")
    opening = rng.choice(("Imagine you are {}. What would you tell {} about {}", "You work as {}. Tell {} about {}"))
    instruction = f"{opening.format(role, audience, topic)} {constraint}?".replace("  ", " ")
    if opening.startswith("You"):
        instruction = instruction[:-1] + "."
    return instruction, "", f"As {role}, I would say this. {facts[0]} {facts[rng.choice((1, 2))]}"


def _shopping(rng: random.Random) -> Task:
    name, place = draw(rng, "names"), draw(rng, "places")
    shop, goods = draw(rng, "trades")
    count, price = rng.randrange(2, 13), rng.randrange(2, 21)
    total = count * price
    question = rng.choice(
        (
            f"{name} buys {count} {goods} at a {shop} in {place} and pays {price} dollars for each. "
            "What does the whole purchase cost?",
            f"At a {shop} in {place}, one of the {goods} costs {price} dollars. How much money does {name} need for "
            f"{count} of them?",
            f"A {shop} in {place} charges {name} {total} dollars for {count} {goods}. What is a single one worth?",
        )
    )
    if "single" in question:
        return question, "", f"{total} divided by {count} is {price}. A single one costs {price} dollars."
    return question, "", f"{count} times {price} is {total}. The total is {total} dollars."


_LIST_WORK: tuple[tuple[str, Callable[[list[int]], str]], ...] = (
    ("Sort these counts from small to large", lambda n: ", ".join(map(str, sorted(n)))),
    ("Put the counts in falling order", lambda n: ", ".join(map(str, sorted(n, reverse=True)))),
    ("Find the largest of these numbers", lambda n: f"The largest number is {max(n)}."),
    ("Pick out the smallest value", lambda n: f"The smallest value is {min(n)}."),
    ("Add up all the amounts", lambda n: f"The sum is {sum(n)}."),
    ("Say how many of the entries are even", lambda n: f"{sum(x % 2 == 0 for x in n)} of the entries are even."),
    ("Tell me by how much the highest and lowest differ", lambda n: f"They differ by {max(n) - min(n)}."),
    ("List only the values above twenty", lambda n: ", ".join(str(x) for x in n if x > 20) or "None of them."),
)


def _list_of_numbers(rng: random.Random) -> Task:
    shop, goods = draw(rng, "trades")
    place, day = draw(rng, "places"), rng.choice(DAYS)
    words, work = rng.choice(_LIST_WORK)
    numbers = [rng.randrange(1, 60) for _ in range(rng.randrange(4, 8))]
    where = rng.choice(
        (
            f"A {shop} in {place} noted how many {goods} it sold every hour of {day}.",
            f"Below are the {goods} that a {shop} from {place} shipped on {day}.",
            f"The {day} list of a {place} {shop} shows its stock of {goods}.",
        )
    )
    return f"{where} {words}.", ", ".join(map(str, numbers)), work(numbers)


def _sentiment(rng: random.Random) -> Task:
    shop, goods = draw(rng, "trades")
    place, is_good = draw(rng, "places"), rng.random() < 0.5
    labels = rng.choice((("positive", "negative"), ("happy", "angry"), ("praise", "complaint"), ("good", "bad")))
    kind = rng.choice(("review", "message", "comment", "note", "letter", "postcard"))
    way = rng.choice(
        (
            f"Decide whether this {kind} to a {shop} in {place} is {labels[0]} or {labels[1]}.",
            f"Is the following {kind} about {goods} from {place} {labels[0]} or {labels[1]}? Answer with one word.",
            f"Label the {kind} that a customer left at the {place} {shop}: {labels[0]} or {labels[1]}.",
        )
    )
    sentences = rng.sample(phrases()["praise" if is_good else "blame"], 2)
    return way, f"I bought {goods} at your {shop}. {' '.join(sentences)}", labels[0 if is_good else 1].capitalize()


def _find_in_note(rng: random.Random) -> Task:
    name, place, day = draw(rng, "names"), draw(rng, "places"), rng.choice(DAYS)
    activity, group = draw(rng, "activities")[0], draw(rng, "groups")
    hour, person = rng.randrange(8, 20), draw(rng, "people")
    field, value = rng.choice((("day", day), ("city", place), ("hour", f"{hour}:00"), ("person in charge", name)))
    ask = rng.choice(("Extract the {} from", "Which {} is named in", "Find the {} mentioned in", "Read off the {} in"))
    instruction = f"{ask.format(field)} this invitation to a {activity} for {group}, written by {person}"
    note = f"Dear all, our {activity} takes place in {place} on {day} at {hour}:00. Please tell {name} if you come."
    return instruction + ("?" if ask.startswith("Which") else "."), note, value


def _plan(rng: random.Random) -> Task:
    activity, first = draw(rng, "activities")
    group, limit, day = draw(rng, "groups"), draw(rng, "limits"), rng.choice(DAYS)
    verb = rng.choice(("Plan", "Organize", "Suggest a schedule for", "Propose", "Think through", "Help me prepare"))
    steps = (first.capitalize(), f"Tell everybody to meet on {day}", "Keep some time for surprises")
    output = "\n".join(f"{number}. {step}." for number, step in enumerate(steps, start=1))
    return f"{verb} a {activity} on {day} for {group} {limit}.", "", output


def _message(rng: random.Random) -> Task:
    request, reason = draw(rng, "requests")
    person, tone, day, name = draw(rng, "people"), draw(rng, "tones"), rng.choice(DAYS), draw(rng, "names")
    verb = rng.choice(("Write", "Draft", "Compose", "Formulate", "Prepare"))
    instruction = f"{verb} a {tone} message in which {name} asks {person} to {request} before {day}."
    return instruction, "", f"Hello,\ncould you please {request} before {day}? The reason: {reason}.\nThank you, {name}"


def _suggest(rng: random.Random) -> Task:
    category, members = draw(rng, "categories")
    purpose, audience = draw(rng, "purposes"), draw(rng, "audiences")
    count = rng.choice((2, 3, 4))
    number = {2: "two", 3: "three", 4: "four"}[count]
    form = rng.choice(("Name {} {} that suit {}", "Which {} {} would you choose for {}", "Recommend {} {} for {}"))
    instruction = (
        f"{form.format(number, category, purpose)}, {rng.choice(('keeping in mind', 'thinking of'))} {audience}"
    )
    chosen = rng.sample(members, count)
    listing = ", ".join(chosen[:-1]) + " and " + chosen[-1]
    return instruction + ("?" if form.startswith("Which") else "."), "", f"I would choose {listing}."


def _translate(rng: random.Random) -> Task:
    entry, situation = draw(rng, "words"), draw(rng, "situations")
    language = rng.choice((1, 2, 3))
    name = ("", "Spanish", "French", "German")[language]
    form = rng.choice(
        (
            f"What is the {name} word for {entry[0]}, which I need while {situation}?",
            f"Translate the noun {entry[0]} into {name}; I want to use it for {situation}.",
            f"How would a {name} speaker say {entry[0]} when {situation}?",
        )
    )
    return form, "", f'In {name}, "{entry[0]}" is "{entry[language]}".'


def _change_tense(rng: random.Random) -> Task:
    name, place = draw(rng, "names"), draw(rng, "places")
    verb, thing = draw(rng, "actions")
    audience, day = draw(rng, "audiences"), rng.choice(DAYS)
    aim, output = rng.choice(
        (
            ("in the future tense", f"On {day}, {name} will {verb} {thing} in {place}."),
            ("as a question", f"Does {name} {verb} {thing} in {place} on {day}?"),
            ("as a polite request", f"{name}, please {verb} {thing} in {place} on {day}."),
            ("in the negative", f"On {day}, {name} does not {verb} {thing} in {place}."),
        )
    )
    way = rng.choice(("Rewrite", "Rephrase", "Restate", "Turn around"))
    noun = rng.choice(("sentence", "statement", "remark", "line of a report", "sentence of a story"))
    s = "es" if verb.endswith("sh") else "s"
    return (
        f"{way} the {noun} {aim} so that it suits {audience}.",
        f"On {day}, {name} {verb}{s} {thing} in {place}.",
        output,
    )


def _code(rng: random.Random) -> Task:
    does, arguments, body = draw(rng, "functions")
    verb, noun = rng.choice(("do", "make", "get", "run", "my")), rng.choice(("step", "result", "value", "job", "work"))
    name = f"{verb}_{noun}"
    audience, purpose = draw(rng, "audiences"), draw(rng, "purposes")
    form = rng.choice(
        (
            f"Define a Python function {name} that {does}; it belongs to {purpose}.",
            f"Show {audience} a Python function called {name} that {does}.",
            f"For {purpose}, code a Python function named {name} which {does}.",
        )
    )
    return form, "", f"def {name}({arguments}):\n    {body}"


def _convert(rng: random.Random) -> Task:
    small, big, factor = draw(rng, "units")
    count, name, audience = rng.randrange(2, 40), draw(rng, "names"), draw(rng, "audiences")
    activity = draw(rng, "activities")[0]
    form = rng.choice(
        (
            f"How many {small} are {count} {big}? {name} wants to know it for a {activity}.",
            f"{name} has to convert {count} {big} into {small} in front of {audience}. What is the result?",
            f"Explain to {audience} how {count} {big} become {small}.",
        )
    )
    return form, "", f"One of the {big} has {factor} {small}, so {count} {big} are {count * factor} {small}."


def _weekday(rng: random.Random) -> Task:
    activity, group, place = draw(rng, "activities")[0], draw(rng, "groups"), draw(rng, "places")
    start, length = rng.randrange(7), rng.randrange(2, 13)
    end = DAYS[(start + length - 1) % 7]
    form = rng.choice(
        (
            f"A {activity} in {place} for {group} starts on {DAYS[start]} and goes on for {length} days in all. "
            "On which weekday is its last day?",
            f"If {group} begin a {activity} on {DAYS[start]} and need {length} days, it included, when do they end?",
        )
    )
    return form, "", f"Counting {DAYS[start]} as the first day, day {length} is a {end}."


MAKERS: tuple[Callable[[random.Random], Task], ...] = (
    _about_topic,
    _about_topic,
    _as_role,
    _shopping,
    _list_of_numbers,
    _sentiment,
    _find_in_note,
    _plan,
    _message,
    _suggest,
    _translate,
    _change_tense,
    _code,
    _convert,
    _weekday,
)
