-- turns: of one conversation
select id::text from turns where conversation_id = $1 and tenant = $2

-- conversations: of a tenant; of one person, by any name that clients give them, where $2 is not null; of one key ($3)
select distinct conversation_id
from turns t
where tenant = $1
    and ($2::text is null or $2 in (
        extras ->> 'user', extras ->> 'safety_identifier', extras -> 'metadata' ->> 'user_id'
    ) or exists (select from feedback f where f.turn_id = t.id and f.author = $2))
    and ($3::text is null or extras ->> 'key_id' = $3)
limit $4

-- learnt: adapters that learnt from any of these turns
select model || '@' || version as name
from tainted_adapters join adapters using (model, version)
where exists (select from jsonb_array_elements_text(details -> 'turns') learnt where learnt = any($1::text[]))
order by 1

-- tainted: all adapters that learnt from what is gone
select model || '@' || version as name, turns, since from tainted_adapters order by 1

-- to_sweep: turns that are gone, whose words may still lie on disk
select turn_id::text as id from deleted_turns where swept_at is null

-- swept: they lie there no more
update deleted_turns set swept_at = now() where turn_id = any($1::uuid[])
