"""python llama_index.py URL MODEL"""

import json
import sys

sys.path.pop(0)  # this folder, where we have the library's name

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike


def get_weather(city: str) -> str:
    """Of a city."""
    return f"sunny in {city}"


model = OpenAILike(
    api_base=f"{sys.argv[1]}/v1", api_key="none", model=sys.argv[2], is_chat_model=True, is_function_calling_model=True
)
asked = [ChatMessage(role="user", content="Weather in Bern?")]
print(model.chat(asked).message.content)
print("".join(chunk.delta or "" for chunk in model.stream_chat(asked)))
tool = FunctionTool.from_defaults(get_weather)
called = model.chat_with_tools([tool], chat_history=asked)
call = model.get_tool_calls_from_response(called)[0]
print(call.tool_name, json.dumps(call.tool_kwargs))
result = ChatMessage(role="tool", content="sunny", additional_kwargs={"tool_call_id": call.tool_id})
print(model.chat_with_tools([tool], chat_history=[*asked, called.message, result]).message.content)
