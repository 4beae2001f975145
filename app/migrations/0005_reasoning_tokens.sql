-- How much of an answer was reasoning. Apply before the release that writes it.

alter table turns add column reasoning_tokens bigint;
