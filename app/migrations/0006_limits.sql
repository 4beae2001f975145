-- Counting a request in one round trip. Apply before the release that calls it.

-- Counts a request of a key, unless that would go over a limit (null: there is none). Gives what the key did in this
-- minute and does now, the request at hand included where it was counted, and the seconds until the next minute.
create function enter_request(
    key text, request text, lease_s float8, most_requests int, most_tokens int, most_streams int,
    out requests bigint, out tokens bigint, out streams bigint, out reset_s float8, out counted boolean
) language plpgsql as $$
declare
    at timestamptz;
    this_minute timestamptz;
begin
    perform pg_advisory_xact_lock(hashtextextended(key, 7266883107));   -- requests of one key take turns
    at := clock_timestamp();                                            -- not now(): that was before the turn came
    this_minute := date_trunc('minute', at);
    reset_s := extract(epoch from this_minute + interval '1 minute' - at);
    delete from key_streams where key_id = key and until < at;
    select count(*) into streams from key_streams where key_id = key;
    select sum(spent.requests), sum(spent.tokens) into requests, tokens
    from key_minutes spent where key_id = key and minute = this_minute;
    if requests is null then                                            -- the first of its minute
        delete from key_minutes where key_id = key and minute < this_minute - interval '1 hour';
    end if;
    requests := coalesce(requests, 0);
    tokens := coalesce(tokens, 0);
    counted := coalesce(requests < most_requests, true) and coalesce(tokens < most_tokens, true)
        and coalesce(streams < most_streams, true);
    if not counted then
        return;
    end if;
    insert into key_streams (request_id, key_id, until) values (request, key, at + make_interval(secs => lease_s))
    on conflict (request_id) do nothing;
    insert into key_minutes as spent (key_id, minute, requests) values (key, this_minute, 1)
    on conflict (key_id, minute) do update set requests = spent.requests + 1;
    requests := requests + 1;
    streams := streams + 1;
end $$;
