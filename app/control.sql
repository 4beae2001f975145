-- control: what is set
select coalesce((select (to_jsonb(c) - 'one')::text from serving_control c), '{}')

-- set: all of it
insert into serving_control (model, system_prompt, tools, layers) values ($1, $2, $3, $4)
on conflict (one) do update set
    model = excluded.model, system_prompt = excluded.system_prompt, tools = excluded.tools, layers = excluded.layers
