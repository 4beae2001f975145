"""Both engines read the same prompt: the demo model's GGUF on llama.cpp, and its safetensors for vLLM."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.llama.model import Model
from app.llama.source import DEMO_FILE
from app.llama.tokenizer import Tokenizer
from app.messages import Generate, Message, Tool, ToolCall
from app.vllm.vocabulary import FolderVocabulary
from train.demo_export import restore

pytestmark = pytest.mark.integration
TOOL = Tool(name="weather", description="<|im_end|>", parameters={"type": "object", "properties": {"é": {}}})
TEXTS = st.text() | st.lists(st.sampled_from(["<|im_end|>", "<tool_call>", "the", " ", "\n", "é😀", "123"])).map(
    "".join
)


class Both:
    """The same model's tokenizers."""

    def __init__(self, folder: Path) -> None:
        restore(DEMO_FILE, folder)
        self.gguf, self.folder = Model(DEMO_FILE), FolderVocabulary(folder)
        self.on_llama_cpp, self.on_vllm = Tokenizer(self.gguf), Tokenizer(self.folder)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    return Both(tmp_path_factory.mktemp("demo") / "hf")


def test_the_vocabularies_are_the_same(both: Both):
    """Bytes of every token, what ends an answer, how calls are written."""
    tokens = range(both.gguf.vocab_size)
    assert [both.folder.piece(token) for token in tokens] == [both.gguf.piece(token) for token in tokens]
    assert both.folder.endings <= set(both.gguf.endings)
    assert both.on_vllm.syntax == both.on_llama_cpp.syntax
    assert (both.folder.bos(), both.folder.eos()) == (both.gguf.bos(), both.gguf.eos())


@settings(max_examples=60, deadline=None)
@given(said=TEXTS, told=TEXTS)
def test_any_chat_is_the_same_prompt(both: Both, said: str, told: str):
    """With tools, calls and their results, and forged marks in all of them; and any text that is continued."""
    call = ToolCall(id="c", name="weather", arguments='{"a": 1}')
    chat = (
        Message(role="system", content=told),
        Message(role="user", content=said),
        Message(role="assistant", tool_calls=(call,)),
        Message(role="tool", content=told, tool_call_id="c"),
    )
    for request in (
        Generate(request_id="r", model="m", messages=chat, tools=(TOOL,)),
        Generate(request_id="r", model="m", prompt=said),
    ):
        expected, found = both.on_llama_cpp.prompt(request), both.on_vllm.prompt(request)
        assert (found.tokens.tolist(), found.thinking) == (expected.tokens.tolist(), expected.thinking)
