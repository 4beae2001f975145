"""By which template chats are shown: the model's own, a built-in one, or a file."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from app.errors import Misconfigured
from app.llama.styles import name_of, template_of
from app.llama.template import ChatTemplate
from app.messages import Message
from app.settings import FurtherModel, LLMSettings


def shown(*said: str) -> str:
    """A chat by mistral_inst; system: in front, the others user: or assistant:."""
    turns = (one.partition(": ") for one in said)
    messages = [Message.model_validate({"role": role, "content": text}) for role, _, text in turns]
    source = template_of("mistral_inst", "llm.chat_template")
    assert source is not None
    return "".join(text for text, _ in ChatTemplate(source, bos="<s>", eos="</s>").render(messages).segments)


@pytest.mark.parametrize(
    ("said", "prompt"),
    [
        (["user: a"], "<s>[INST] a [/INST]"),
        (["user: a", "assistant: b", "user: c"], "<s>[INST] a [/INST] b</s> [INST] c [/INST]"),
        (["user: a", "assistant:  b", "user: c"], "<s>[INST] a [/INST] b</s> [INST] c [/INST]"),  # as it was generated
        (["system: Be brief.", "user: a"], "<s>[INST] Be brief.\n\na [/INST]"),
        (["user: a", "user: b"], "<s>[INST] a\n\nb [/INST]"),
    ],
)
def test_mistral_inst_is_mistrals_own_form(said: list[str], prompt: str):
    """One turn after the other, a system prompt in the first question, as mistral-common has it for tokenizer v1."""
    assert shown(*said) == prompt


def test_auto_leaves_a_model_its_own():
    """Nothing is put in its place."""
    assert template_of("auto", "llm.chat_template") is None


def test_a_file_is_read(tmp_path: Path):
    """As it is."""
    (tmp_path / "mine.jinja").write_text("{{ messages[0].content }}")
    assert template_of(str(tmp_path / "mine.jinja"), "llm.chat_template") == "{{ messages[0].content }}"


@pytest.mark.parametrize(("content", "reason"), [(None, "No such file"), (b"\xff", "no text in UTF-8")])
def test_a_file_that_cannot_be_read_is_named(content: bytes | None, reason: str, tmp_path: Path):
    """With the setting that names it, and what else it may say."""
    if content is not None:
        (tmp_path / "mine.jinja").write_bytes(content)
    with pytest.raises(Misconfigured, match=f"mine.jinja cannot be read .*{reason}") as caught:
        template_of(str(tmp_path / "mine.jinja"), "tune.chat_template")
    assert "mistral_inst" in str(caught.value)
    assert "tune.chat_template" in str(caught.value)


@pytest.mark.parametrize("style", ["", "chatml", "mine.txt", "AUTO"])
def test_what_is_no_style_is_refused_when_settings_are_read(style: str):
    """Before anything starts."""
    with pytest.raises(ValidationError, match="chat_template"):
        LLMSettings(chat_template=style)


def test_a_home_that_nobody_has_is_named():
    """As a file that is not there."""
    with pytest.raises(Misconfigured, match=r"~nobody-here/x\.jinja cannot be read"):
        template_of("~nobody-here/x.jinja", "llm.chat_template")


def test_a_further_model_has_a_template_of_its_own():
    """The main one's belongs to another file."""
    settings = LLMSettings(chat_template="mistral_inst", models={"b": FurtherModel(model="b.gguf")})
    assert settings.of("b").chat_template == "auto"


def test_a_template_that_is_no_jinja_names_the_setting_that_gave_it():
    """Which is not the model where a file was given."""
    with pytest.raises(Misconfigured, match=r"llm\.chat_template"):
        ChatTemplate("{% if %}", setting="llm.chat_template")


def test_templates_are_told_apart_by_a_word(tmp_path: Path):
    """By name where they have one; the same text is the same template, wherever it lies."""
    for name in ("one", "other"):
        (tmp_path / f"{name}.jinja").write_text("{{ bos_token }}")
    found = [name_of(template_of(style, "")) for style in
             ("auto", "mistral_inst", str(tmp_path / "one.jinja"), str(tmp_path / "other.jinja"))]  # fmt: skip
    assert found[:2] == ["auto", "mistral_inst"]
    assert found[2] == found[3] != name_of("{{ eos_token }}")
