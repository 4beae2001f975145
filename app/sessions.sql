-- conversation: that a session goes on with
select conversation_id from sessions where tenant = $1 and key_id = $2 and name = $3

-- move: let a session go on with another conversation, or begin anew
insert into sessions (tenant, key_id, name, conversation_id) values ($1, $2, $3, $4)
on conflict (tenant, key_id, name) do update set conversation_id = excluded.conversation_id, updated_at = now()
