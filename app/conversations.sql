-- place: whether $1 is a conversation of the tenant $2; and the turn with the longest history among the links $3, the
-- latest of equals: of that conversation, else of those of the key $4
select known, parent.id, parent.conversation_id, parent.exact, parent.depth
from (select exists (select from conversations where id = $1 and tenant = $2) as known) named
left join lateral (
    select id, conversation_id, exact, depth
    from turns
    where tenant = $2 and chain = any($3::bytea[])
      and case when known then conversation_id = $1 else $4::text is null or extras ->> 'key_id' = $4 end
    order by depth desc, number desc
    limit 1
) parent on true

-- of_request: the turn that was recorded for a request
select id, conversation_id from turns where tenant = $1 and request_id = $2

-- keep_turn: and make its conversation, or move that forward in time; no row when the request is recorded already, or
-- the conversation is another tenant's
with opened as (
    insert into conversations (id, tenant, title, created_at, updated_at)
    select $2, $4, $34, $32, $32 where not exists (select from turns where tenant = $4 and request_id = $5)
    on conflict (id) do update set updated_at = greatest(conversations.updated_at, excluded.updated_at)
    where conversations.tenant = excluded.tenant
    returning id
)
insert into turns (
    id, conversation_id, parent_id, tenant, request_id, chain, exact, depth, messages, resent, answer, model, adapter,
    sources, placement, sampling, stop, max_tokens, prompt_tokens, completion_tokens, cached_tokens, queued_s,
    prefill_s, decode_s, first_token_s, latency_s, finish_reason, status, error, client, extras, created_at,
    reasoning_tokens
)
select
    $1, opened.id, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23,
    $24, $25, $26, $27, $28, $29, $30, $31, $32, $33
from opened
on conflict (tenant, request_id) do nothing
returning id

-- insert_texts: keep texts once
insert into texts (sha256, text) select * from unnest($1::bytea[], $2::text[]) order by 1 on conflict do nothing

-- insert_system_prompts: say where the system prompts of a turn stood
insert into system_prompts (turn_id, position, name, sha256)
select $1, * from unnest($2::int[], $3::text[], $4::bytea[]) on conflict do nothing

-- recent: the conversations of a tenant that are wanted, latest first, behind the place in $2, $9
select c.id, c.title, c.created_at, c.updated_at, t.turns, l.model
from conversations c
cross join lateral (select count(*) as turns from turns where conversation_id = c.id) t
cross join lateral (select model from turns where conversation_id = c.id order by number desc limit 1) l
where c.tenant = $1
  and ($2::uuid is null or (c.updated_at, c.id) < ($9::timestamptz, $2))
  and ($4::timestamptz is null or c.updated_at >= $4)
  and ($5::timestamptz is null or c.updated_at < $5)
  and ($6::text is null or c.id in (select conversation_id from turns where tenant = $1 and model = $6))
  and ($7::text is distinct from 'up' or c.id in (
        select conversation_id from turns join feedback on turn_id = turns.id where tenant = $1 and rating > 0))
  and ($7::text is distinct from 'down' or c.id in (
        select conversation_id from turns join feedback on turn_id = turns.id where tenant = $1 and rating < 0))
  and ($7::text is distinct from 'none' or c.id not in (
        select conversation_id from turns join feedback on turn_id = turns.id
        where tenant = $1 and rating is not null))
  and ($8::text is null or c.id in (
        select conversation_id from turns
        where tenant = $1 and turn_words(answer, messages) @@ websearch_to_tsquery('simple', $8)))
order by c.updated_at desc, c.id desc
limit $3

-- conversation: one of a tenant's
select id, title, created_at, updated_at from conversations where id = $1 and tenant = $2

-- turns: of a conversation, in the order of recording
select * from turns where conversation_id = $1 order by number

-- path: a turn behind all its ancestors, the oldest first
with recursive path as (
    select * from turns where id = $1 and tenant = $2
    union all
    select turns.* from turns join path on turns.id = path.parent_id
)
select id, messages, resent, answer, sources, placement, extras from path order by depth

-- system_prompts: of a turn, in their order
select position, name, text from system_prompts join texts using (sha256) where turn_id = $1 order by position

-- lock_texts: keep recorders waiting while texts are swept
lock table texts in share row exclusive mode

-- delete: forget a conversation and its turns
delete from conversations where id = $1 and tenant = $2 returning id

-- texts_of: the system prompts of a conversation
select distinct sha256 from system_prompts join turns on turns.id = turn_id where conversation_id = $1

-- sweep_texts: forget texts that no turn has any more
delete from texts where sha256 = any($1::bytea[]) and not exists (
    select from system_prompts where system_prompts.sha256 = texts.sha256
)
