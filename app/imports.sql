-- has: whether a tenant has a conversation
select exists (select from conversations where id = $1 and tenant = $2)

-- imported: the conversations of which every turn was imported
select id from conversations c
where tenant = $1
  and exists (select from turns where conversation_id = c.id)
  and not exists (select from turns where conversation_id = c.id and not extras ? 'imported')
