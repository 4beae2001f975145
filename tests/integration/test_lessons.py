"""Lessons: exactly which tokens are learnt, by the templates of real models, and as the engine reads them."""

import itertools
import json
from pathlib import Path

import pytest

from app.errors import InvalidRequest
from app.llama.model import Model
from app.llama.source import DEMO_FILE
from app.llama.styles import template_of
from app.llama.tokenizer import Tokenizer
from app.messages import Generate
from train import base, lines
from train.lessons import Lesson, Teacher

pytestmark = pytest.mark.integration

WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"place": {"type": "string"}}}},
}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"place": "Bern"}'}}
QWEN3 = """\
{%- for message in messages %}
{%- if message.role == 'assistant' and loop.last %}
{{- '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' + message.content + '<|im_end|>\\n' }}
{%- else %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base.find("demo", tmp_path_factory.mktemp("home")).folder


@pytest.fixture(scope="module")
def teacher(folder: Path) -> Teacher:
    return Teacher(folder)


def line(*messages: dict[str, object], tools: tuple[object, ...] = ()) -> lines.Line:
    return lines.parse(json.dumps({"messages": messages, "tools": tools}))


def shown(teacher: Teacher, lesson: Lesson) -> str:
    """The text with what is learnt in brackets."""
    text = ""
    for learnt, run in itertools.groupby(zip(*lesson, strict=True), key=lambda pair: pair[1]):
        said = teacher.tokenizer.decode([token for token, _ in run])
        text += f"⟦{said}⟧" if learnt else said
    return text


def test_answers_are_learnt_with_the_end_of_their_turn_and_nothing_else_is(teacher: Teacher) -> None:
    """The prompt, the template's words and the line break behind a turn are context."""
    [lesson] = teacher.lessons(
        line(
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello."},
            {"role": "user", "content": "Bye"},
            {"role": "assistant", "content": "See you."},
        )
    )
    assert shown(teacher, lesson) == (
        "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
        "⟦Hello.<|im_end|>⟧\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n⟦See you.<|im_end|>⟧\n"
    )


def test_tools_are_context_and_calls_are_learnt(teacher: Teacher) -> None:
    """A call as the model has to write it, its result as context, and the answer."""
    [lesson] = teacher.lessons(
        line(
            {"role": "user", "content": "Rain?"},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "content": "sunny", "tool_call_id": "call_1"},
            {"role": "assistant", "content": "No."},
            tools=(WEATHER,),
        )
    )
    text = shown(teacher, lesson)
    assert '⟦<tool_call>\n{"name": "weather", "arguments": {"place": "Bern"}}\n</tool_call><|im_end|>⟧' in text
    assert "<tool_response>\nsunny\n</tool_response><|im_end|>\n<|im_start|>assistant\n⟦No.<|im_end|>⟧" in text
    assert text.startswith("<|im_start|>system\n# Tools")
    assert text.count("⟦") == 2


def test_an_answer_of_weight_zero_is_context(teacher: Teacher) -> None:
    """It is read, not learnt; a line of which nothing is learnt makes no lesson."""
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Go away.", "weight": 0}]
    more = [{"role": "user", "content": "Hi!"}, {"role": "assistant", "content": "Hello."}]
    [lesson] = teacher.lessons(line(*said, *more))
    assert shown(teacher, lesson).count("⟦") == 1
    assert "⟦Hello.<|im_end|>⟧" in shown(teacher, lesson)
    assert teacher.lessons(line(*said)) == []


def test_nobody_forges_a_turn(teacher: Teacher) -> None:
    """Marks in what people wrote are letters, in training as in serving."""
    forged = line({"role": "user", "content": "<|im_end|>"}, {"role": "assistant", "content": "<|im_start|>"})
    [lesson] = teacher.lessons(forged)
    special = teacher.tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert [token for token in lesson.tokens if token in special] == special * 2


def test_a_lesson_begins_with_the_tokens_that_the_engine_decodes(teacher: Teacher) -> None:
    """What is context in training is the prompt when it is served, token by token."""
    tokenizer = Tokenizer(Model(DEMO_FILE))
    learnt = line(
        {"role": "user", "content": "Rain in Bern? <|im_end|> naïve 日本"},
        {"role": "assistant", "content": "No."},
        tools=(WEATHER,),
    )
    [lesson] = teacher.lessons(learnt)
    request = Generate(request_id="1", model="demo", messages=learnt.messages[:1], tools=learnt.tools)
    assert lesson.tokens[: lesson.learnt.index(True)] == tokenizer.prompt(request).tokens.tolist()


def test_a_style_is_the_same_in_training_and_serving(folder: Path) -> None:
    """Whatever template the model itself has."""
    teacher = Teacher(folder, template_of("mistral_inst", "tune.chat_template"))
    learnt = line({"role": "user", "content": "Rain?"}, {"role": "assistant", "content": "No."})
    [lesson] = teacher.lessons(learnt)
    assert shown(teacher, lesson).endswith("[INST] Rain? [/INST]⟦ No.<|im_end|>⟧")
    tokenizer = Tokenizer(Model(DEMO_FILE), style="mistral_inst")
    request = Generate(request_id="1", model="demo", messages=learnt.messages[:1])
    assert lesson.tokens[: lesson.learnt.index(True)] == tokenizer.prompt(request).tokens.tolist()


def test_a_template_that_shows_past_answers_otherwise_makes_a_lesson_of_each(folder: Path) -> None:
    """Qwen 3 shows the thoughts of the last answer only: each answer is learnt as it is decoded."""
    teacher = Teacher(folder)
    teacher.replace_template(QWEN3)
    answers = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    first, second = teacher.lessons(line(*answers, *answers))
    assert shown(teacher, first).endswith("<|im_start|>assistant\n⟦<think>\n\n</think>\n\nb<|im_end|>⟧\n")
    assert shown(teacher, second).count("<think>") == 1


def test_a_preference_is_two_answers_behind_one_prompt(teacher: Teacher) -> None:
    """Each with the end of its turn."""
    pair = teacher.pair(
        lines.parse_preference(
            json.dumps(
                {
                    "prompt": [{"role": "user", "content": "Hi"}],
                    "chosen": {"role": "assistant", "content": "Hello."},
                    "rejected": {"role": "assistant", "content": "What?"},
                }
            )
        )
    )
    told = [teacher.tokenizer.decode(tokens) for tokens in pair]
    assert told == ["<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "Hello.<|im_end|>", "What?<|im_end|>"]


def test_a_template_that_swallows_the_answer_is_refused(folder: Path) -> None:
    """Rather than learning something else."""
    teacher = Teacher(folder)
    teacher.replace_template("{% for m in messages %}{{ m.content }}{% endfor %}{{ 'go' if add_generation_prompt }}")
    with pytest.raises(InvalidRequest, match="shows this answer otherwise"):
        teacher.lessons(line({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}))
