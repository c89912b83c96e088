"""The numbered list: written as Alpaca writes it, read back as Alpaca reads it."""

from __future__ import annotations

import pytest

from alpaca_jobs.generation.encode import encode_prompt, stop_sequences
from alpaca_jobs.generation.parse import ParsedTask, parse_answer
from alpaca_jobs.generation.seeds import SeedTask

SEEDS = (
    SeedTask("Name  a\n color:", "", "Red"),
    SeedTask("Add these. ", "1 2", "3"),
    SeedTask("Say hello::", "", "Hello"),
)


def test_the_list_has_alpacas_format_to_the_letter() -> None:
    prompt = encode_prompt(SEEDS, num_tasks=20)
    assert prompt[prompt.index("###") :] == (
        "###\n1. Instruction: Name a color\n1. Input:\n<noinput>\n1. Output:\nRed\n"
        "###\n2. Instruction: Add these.\n2. Input:\n1 2\n2. Output:\n3\n"
        "###\n3. Instruction: Say hello\n3. Input:\n<noinput>\n3. Output:\nHello\n"
        "###\n4. Instruction:"
    )


def test_the_requirements_say_what_alpacas_do() -> None:
    header = encode_prompt(SEEDS, num_tasks=20).split("###")[0].lower()
    for words in (
        "20",
        "verbs",
        "wording",
        "kinds of task",
        "english",
        "one or two sentences",
        "<noinput>",
        "100 words",
    ):
        assert words in header


def test_the_stop_cuts_the_list_and_nothing_in_an_answer() -> None:
    (stop,) = stop_sequences(20)
    assert stop == "\n21. Instruction:"
    assert stop not in "It was built in 1920. By then\n20. Instruction: x\n200 people lived there."


def _item(number: int, instruction: str = "Do a thing now", given: str = "<noinput>", output: str = "Done") -> str:
    return f"###\n{number}. Instruction: {instruction}\n{number}. Input:\n{given}\n{number}. Output:\n{output}\n"


def _answer(*items: str) -> str:
    """What a completion looks like: it starts right after the cue `4. Instruction:`."""
    return "".join(items).removeprefix("###\n4. Instruction:")


def test_tasks_are_read_in_order_with_their_fields_stripped() -> None:
    answer = parse_answer(
        _answer(_item(4), _item(5, given=" a\nb ", output="c\n\nd\n")), num_shown=3, finish_reason="stop"
    )
    assert answer.tasks == (
        ParsedTask(0, "Do a thing now", "", "Done"),
        ParsedTask(1, "Do a thing now", "a\nb", "c\n\nd"),
    )
    assert answer.drops == {}


def test_a_chat_model_may_repeat_the_cue() -> None:
    text = _item(4) + _item(5)
    for variant in (text, text.removeprefix("###\n"), "\n" + text, text.removeprefix("###")):
        assert len(parse_answer(variant, num_shown=3, finish_reason="stop").tasks) == 2


def test_the_last_piece_of_a_cut_answer_is_dropped_even_if_it_looks_whole() -> None:
    answer = parse_answer(_answer(_item(4), _item(5)), num_shown=3, finish_reason="length")
    assert len(answer.tasks) == 1
    assert answer.drops == {"cut_off": 1}


@pytest.mark.parametrize(
    "piece",
    [
        "###\n5. Instruction: Do it\n5. Output:\nDone\n",
        "###\n5. Instruction: Do it\n5. Input:\nx\n",
        "###\n5. Instruction: Do it\n6. Input:\nx\n5. Output:\nDone\n",
        "###\n5. Instruction: Do it\n5. Output:\nDone\n5. Input:\nx\n",
        "###\n5. Instruction: a\n5. Input:\nb\n5. Output:\nc\n5. Output:\nd\n",
        "###\nI hope this helps!\n",
        "###\nInstruction: Do it\nInput:\nx\nOutput:\nDone\n",
    ],
)
def test_a_broken_piece_is_counted_and_its_neighbours_stay(piece: str) -> None:
    answer = parse_answer(_answer(_item(4), piece, _item(6)), num_shown=3, finish_reason="stop")
    assert [task.index for task in answer.tasks] == [0, 2]
    assert answer.drops == {"malformed": 1}


def test_a_teacher_that_miscounts_loses_nothing() -> None:
    answer = parse_answer(_answer(_item(4), _item(4), _item(9)), num_shown=3, finish_reason="stop")
    assert len(answer.tasks) == 3


def test_a_separator_at_the_end_is_not_a_broken_piece() -> None:
    assert parse_answer(_answer(_item(4)) + "###\n", num_shown=3, finish_reason="stop").drops == {}


def test_an_apology_is_one_broken_piece() -> None:
    answer = parse_answer("I'm sorry, but I can't help with that.", num_shown=3, finish_reason="stop")
    assert answer.tasks == ()
    assert answer.drops == {"malformed": 1}


def test_what_is_written_is_read_back() -> None:
    prompt = encode_prompt(SEEDS, num_tasks=20)
    listing = prompt[prompt.index("###\n1.") : prompt.rindex("###")]
    tasks = parse_answer(listing, num_shown=0, finish_reason="stop").tasks
    assert [(task.instruction, task.input, task.output) for task in tasks] == [
        ("Name a color", "", "Red"),
        ("Add these.", "1 2", "3"),
        ("Say hello", "", "Hello"),
    ]
