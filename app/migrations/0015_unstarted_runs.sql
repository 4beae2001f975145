-- Attempts at a run that came to nothing, for no process could be started. Apply before the release that writes them.

alter table runs add column unstarted int not null default 0;
