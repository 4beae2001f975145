"""By which chat template a model is shown messages: its own, one that comes with MindFu, or one in a file.

    auto            the model's own: of a GGUF, tokenizer.chat_template; of a folder, chat_template.jinja and the like
    mistral_inst    <s>[INST] question [/INST] answer</s>: Mistral Instruct up to 0.2 (mistral-common, tokenizer v1)
    PATH.jinja      a file in the dialect of Hugging Face transformers

Serving and training read it here, so that a model is asked as it was taught.
"""

import hashlib
from pathlib import Path
from typing import Annotated

from pydantic import Field

from app.errors import Misconfigured

AUTO = "auto"
MISTRAL_INST = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) or message.role not in ('user', 'assistant') %}
        {{- raise_exception('roles must alternate: user, assistant, user, …') }}
    {%- elif message.role == 'user' %}
        {{- (' ' if loop.index0 else '') + '[INST] ' }}{{ message.content }}{{ ' [/INST]' }}
    {%- else %}
        {{- ' ' }}{{ message.content | trim }}{{ eos_token }}
    {%- endif %}
{%- endfor %}
"""
TAUGHT_BY = "mindfu.adapter.chat_template"  # of a GGUF LoRA: the name of the template that it learnt by
BUILT_IN = {"mistral_inst": MISTRAL_INST}

Style = Annotated[str, Field(pattern=rf"^({AUTO}|{'|'.join(BUILT_IN)}|.+\.jinja)$")]


def template_of(style: str, setting: str) -> str | None:
    """The Jinja source of a style; None: the model's own. Raises Misconfigured where its file cannot be read."""
    if style == AUTO:
        return None
    if style in BUILT_IN:
        return BUILT_IN[style]
    try:
        return Path(style).expanduser().read_text(encoding="utf-8")
    except (OSError, RuntimeError, UnicodeDecodeError) as error:  # the second: of a home that nobody has
        reason = (
            "it is no text in UTF-8" if isinstance(error, UnicodeDecodeError) else getattr(error, "strerror", error)
        )
        remedy = f"Give the path of a chat template, or one of: {', '.join((AUTO, *BUILT_IN))}."
        raise Misconfigured(setting, f"{style} cannot be read ({reason})", remedy) from error


def name_of(template: str | None) -> str:
    """What tells templates apart, in a word: auto for the model's own, the name of a built-in one, or a hash."""
    if template is None:
        return AUTO
    names = [name for name, source in BUILT_IN.items() if source == template]
    return names[0] if names else hashlib.sha256(template.encode()).hexdigest()[:16]
