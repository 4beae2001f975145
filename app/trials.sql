-- keep_shadow: what an adapter would have answered, once; no row when its turn is not there
insert into shadows (turn_id, adapter, answer, status, error, completion_tokens, latency_s)
select $1, $2, $3, $4, $5, $6, $7 where exists (select from turns where id = $1)
on conflict do nothing
returning turn_id

-- shadows: of a model and an adapter, the latest first, with what people saw; $3: of one tenant, null: of all
select
    turns.id as turn_id, turns.conversation_id, turns.answer as shown, turns.adapter as shown_by, shadows.answer,
    shadows.status, shadows.error, shadows.completion_tokens, shadows.latency_s, shadows.created_at
from shadows join turns on turns.id = shadows.turn_id
where turns.model = $1 and shadows.adapter = $2 and ($3::text is null or turns.tenant = $3)
order by shadows.created_at desc limit $4

-- shadows_standing: how many there are since a time, and how many did not come to their end
select
    count(*) as turns, count(*) filter (where shadows.status <> 'complete') as unfinished, 0 as judged, 0 as disliked
from shadows join turns on turns.id = shadows.turn_id
where turns.model = $1 and shadows.adapter = $2 and shadows.created_at >= $3

-- standing: of the latest turns that an adapter ('': the bare base) answered for a model's name in a time
select
    count(*) as turns,
    count(*) filter (where status in ('failed', 'truncated')) as unfinished,
    count(*) filter (where judged) as judged,
    count(*) filter (where disliked) as disliked
from (
    select id, status from turns
    where model = $1 and coalesce(adapter, '') = $2 and created_at >= $3 and created_at < $4
    order by created_at desc limit $5
) latest
left join lateral (
    select
        bool_or(rating is not null or correction is not null) as judged,
        coalesce(min(rating) < 0, bool_or(correction is not null)) as disliked
    from feedback where turn_id = latest.id
) opinions on true
