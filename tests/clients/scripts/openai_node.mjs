// node openai_node.mjs URL MODEL
import OpenAI from "openai";

const [url, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "Weather in Bern?" }];
const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const tools = [{ type: "function", function: { name: "get_weather", parameters } }];

console.log((await client.chat.completions.create({ model, messages })).choices[0].message.content);
let text = "";
for await (const chunk of await client.chat.completions.create({ model, messages, stream: true }))
  text += chunk.choices[0]?.delta?.content ?? "";
console.log(text);
const { message } = (await client.chat.completions.create({ model, messages, tools })).choices[0];
const call = message.tool_calls[0];
console.log(call.function.name, JSON.stringify(JSON.parse(call.function.arguments)));
const result = { role: "tool", tool_call_id: call.id, content: "sunny" };
const told = await client.chat.completions.create({ model, messages: [...messages, message, result], tools });
console.log(told.choices[0].message.content);
