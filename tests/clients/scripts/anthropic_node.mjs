// node anthropic_node.mjs URL MODEL
import Anthropic from "@anthropic-ai/sdk";

const [baseURL, model] = process.argv.slice(2);
const client = new Anthropic({ baseURL, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "Weather in Bern?" }];
const input_schema = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const asked = { model, max_tokens: 64, messages };
const tools = [{ name: "get_weather", input_schema }];

console.log((await client.messages.create(asked)).content[0].text);
console.log(await client.messages.stream(asked).finalText());
const called = await client.messages.create({ ...asked, tools });
const call = called.content.at(-1);
console.log(call.name, JSON.stringify(call.input));
const result = { role: "user", content: [{ type: "tool_result", tool_use_id: call.id, content: "sunny" }] };
const back = [...messages, { role: "assistant", content: called.content }, result];
console.log((await client.messages.create({ ...asked, messages: back, tools })).content[0].text);
