-- turn: by its id
select id from turns where id = $1 and tenant = $2

-- turns_of_request: by our own id of the request, or by the x-request-id that the client chose
select id from turns
where tenant = $1 and (request_id = any($2::text[]) or extras ->> 'x_request_id' = any($2::text[]))
limit 2

-- give: keep what someone thinks of a turn; what is not said anew ($6: the fields that are) stays
insert into feedback (turn_id, author, rating, comment, correction) values ($1, $2, $3, $4, $5)
on conflict (turn_id, author) do update set
    rating = case when 'rating' = any($6::text[]) then excluded.rating else feedback.rating end,
    comment = case when 'comment' = any($6::text[]) then excluded.comment else feedback.comment end,
    correction = case when 'correction' = any($6::text[]) then excluded.correction else feedback.correction end,
    updated_at = now()
returning *

-- of_conversation: all feedback on its turns
select feedback.* from feedback join turns on turns.id = turn_id where conversation_id = $1 order by feedback.updated_at

-- state: how much feedback a tenant has, and the latest change of it
select count(*) as given, max(feedback.updated_at) as latest from feedback join turns on turns.id = turn_id
where tenant = $1
