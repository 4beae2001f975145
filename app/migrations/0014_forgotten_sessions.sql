-- A session's name goes with its conversation. Apply before the release that deletes conversations of sessions.

create index sessions_of_conversation on sessions (conversation_id);

create function forget_sessions() returns trigger language plpgsql as $$
begin
    delete from sessions where conversation_id = old.id;
    return null;
end $$;
create trigger sessions_go_with_their_conversation after delete on conversations
for each row execute function forget_sessions();
