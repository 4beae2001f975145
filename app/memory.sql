-- try_lock: the right to do this work, until disconnected; false when somebody has it
select pg_try_advisory_lock($1)

-- unremembered: turns to make findable, the latest first; of many the latest and the oldest, so that none waits for ever
select turn_id, asked_at from (
    (
        select turn_id, asked_at, number from unremembered join turns on turns.id = turn_id
        where try_after <= now() order by number desc limit ($1::int + 1) / 2
    ) union (
        select turn_id, asked_at, number from unremembered join turns on turns.id = turn_id
        where try_after <= now() order by number limit $1::int / 2
    )
) due
order by number desc

-- turn: what is worth remembering of a turn, if it is still there
select t.tenant, t.created_at, t.answer, c.title,
    coalesce((select chunks from memories where turn_id = t.id), 0) as chunks
from turns t join conversations c on c.id = t.conversation_id
where t.id = $1

-- judged: what people said of a turn, the latest last
select * from feedback where turn_id = $1 order by updated_at

-- asked_before: the messages of the nearest turn before this one, this one included, in which a user spoke
with recursive path as (
    select id, parent_id, messages, 0 as steps from turns where id = $1
    union all
    select t.id, t.parent_id, t.messages, steps + 1 from turns t join path on t.id = path.parent_id
    where steps < 100 and not path.messages @> '[{"role": "user"}]'
)
select messages from path where messages @> '[{"role": "user"}]' limit 1

-- remembered: note what the vector store holds of a turn
insert into memories (turn_id, chunks) values ($1, $2)
on conflict (turn_id) do update set chunks = excluded.chunks, remembered_at = now()

-- done: take a turn from the queue, unless it was asked for anew
delete from unremembered where turn_id = $1 and asked_at = $2

-- failed: try a turn again later, each time twice as late, up to an hour
update unremembered
set failures = failures + 1, try_after = now() + least(interval '1 hour', interval '2 seconds' * power(2, least(failures, 12)))
where turn_id = $1

-- forgotten: turns that are gone
select * from forgotten limit $1

-- cleared: nothing is left of them
delete from forgotten where turn_id = any($1::uuid[])

-- of_conversation: the turns of one of a tenant's conversations
select id, created_at from turns where conversation_id = $1 and tenant = $2

-- told: of some turns those that the tenant has, and where they belong
select t.id, t.created_at, t.conversation_id, c.title
from turns t join conversations c on c.id = t.conversation_id
where t.id = any($1::uuid[]) and t.tenant = $2

-- again: remember all turns of a tenant anew, or of all tenants
insert into unremembered (turn_id) select id from turns where $1::text is null or tenant = $1
on conflict (turn_id) do update set asked_at = clock_timestamp(), failures = 0, try_after = '-infinity'
