-- snapshot: this transaction's view of the database, for another connection to share
select pg_export_snapshot()

-- documents: that are ready, with what a vector store holds of them
select tenant, collection, id, sha256, chunks from documents where state = 'ready' order by collection, id

-- memories: turns that are remembered, likewise
select t.tenant, t.id, t.created_at, m.chunks from memories m join turns t on t.id = m.turn_id
where m.chunks > 0 order by t.created_at, t.id

-- adapters: that may be asked for
select model, version, path from adapters where retired_at is null order by model, version

-- counts: what people know the database by
select (select count(*) from conversations) as conversations, (select count(*) from turns) as turns

-- migrations: that were applied
select number, sha256 from migrations

-- tables: of whatever is there
select count(*) from pg_tables where schemaname = 'public'

-- adapters_come_home: those that lay elsewhere lie beneath the home folder now
update adapters set path = 'adapters/' || model || '/' || version || '.gguf' where path like '/%'
