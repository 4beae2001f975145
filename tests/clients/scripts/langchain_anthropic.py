"""python langchain_anthropic.py URL MODEL"""

import json
import sys

sys.path.pop(0)  # this folder, where we have the library's name

from langchain_anthropic import ChatAnthropic
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool


@tool
def get_weather(city: str) -> str:
    """Of a city."""
    return f"sunny in {city}"


model = ChatAnthropic(base_url=sys.argv[1], api_key="none", model=sys.argv[2], max_tokens=64)
print(model.invoke("hi").content)
print("".join(chunk.text for chunk in model.stream("hi")))
asked = [HumanMessage("Weather in Bern?")]
called = model.bind_tools([get_weather]).invoke(asked)
call = called.tool_calls[0]
print(call["name"], json.dumps(call["args"]))
result = ToolMessage(get_weather.invoke(call["args"]), tool_call_id=call["id"])
print(model.bind_tools([get_weather]).invoke([*asked, called, result]).content)
