-- of_request: the turn of a request that may be asked for by its id
select * from turns where tenant = $1 and request_id = $2 and extras ? 'response'

-- latest: the last turn of a conversation
select turns.* from turns join conversations on conversations.id = conversation_id
where conversation_id = $1 and conversations.tenant = $2
order by number desc
limit 1

-- hide: no longer to be asked for
update turns set extras = extras - 'response' || '{"deleted": true}'
where tenant = $1 and request_id = $2 and extras ? 'response'
returning id

-- hold: let nobody go on from a turn, and see who has
select id from turns where id = $1 for update

-- remove: forget a turn that was deleted and that nothing goes on from; gives its parent
delete from turns where id = $1 and extras @> '{"deleted": true}'
  and not exists (select from turns child where child.parent_id = $1)
returning parent_id, conversation_id

-- close: forget a conversation without turns
delete from conversations where id = $1 and not exists (select from turns where conversation_id = $1)

-- texts_of_turn: the system prompts of a turn
select distinct sha256 from system_prompts where turn_id = $1
