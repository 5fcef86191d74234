-- name: against_create
-- Where a portion of the topic lands, and what is found of it; empty at the end of each transaction, or kept to
-- the end of the session.
create temporary table heard_completions (
  number integer not null,
  id text not null,
  mcp_server_user_id text not null,
  walkthrough_id text not null,
  step_id text not null,
  mcp_server_id text not null,
  mcp_server_session_id text not null,
  completed_at bigint not null,
  metadata jsonb
) on commit delete rows;
create temporary table heard_starts (
  number integer not null,
  id text not null,
  mcp_server_user_id text not null,
  walkthrough_id text not null,
  mcp_server_id text not null,
  mcp_server_session_id text not null,
  started_at bigint not null,
  metadata jsonb
) on commit delete rows;
create temporary table heard_skips (
  number integer not null,
  id text not null,
  mcp_server_user_id text not null,
  walkthrough_id text not null,
  step_id text not null,
  mcp_server_id text not null,
  mcp_server_session_id text not null,
  skipped_at bigint not null,
  reason text,
  metadata jsonb
) on commit delete rows;
create temporary table heard_showings (
  number integer not null,
  id text not null,
  mcp_server_user_id text not null,
  walkthrough_id text not null,
  step_id text not null,
  mcp_server_id text not null,
  mcp_server_session_id text not null,
  shown_at bigint not null,
  version text
) on commit delete rows;
create temporary table heard_corrections (
  number integer not null,
  event_id text not null,
  mcp_server_user_id text not null,
  step_id text not null,
  corrected_at bigint not null,
  covers_until bigint not null,
  completed_at bigint
) on commit delete rows;
-- Rows whose own event was read.
create temporary table seen_completions (id text not null);
create temporary table seen_starts (id text not null);
-- Ids of skips and showings are not unique. Of a showing the first and the last event are seen each for itself.
create temporary table seen_skips (mcp_server_user_id text not null, step_id text not null);
create temporary table seen_showings (
  mcp_server_user_id text not null,
  step_id text not null,
  is_first boolean not null
);
-- Events that the tables do not show.
create temporary table doubted (
  kind text not null,
  partition integer not null,
  "offset" bigint not null,
  checksum bigint not null,
  id text not null,
  mcp_server_user_id text not null,
  walkthrough_id text,
  step_id text,
  mcp_server_id text,
  mcp_server_session_id text,
  happened_at bigint not null,
  metadata jsonb,
  reason text,
  version text,
  cause text not null,
  row_id text,
  row_at bigint
);
create temporary table heard_letters (
  partition integer not null,
  "offset" bigint not null,
  checksum bigint not null
) on commit delete rows;

-- name: against_by_keys
-- A portion is held against a large table by its keys; else the table would be read whole for each.
set enable_hashjoin = off;
set enable_mergejoin = off;

-- name: against_as_a_whole
-- What is left is compared at once.
reset enable_hashjoin;
reset enable_mergejoin;
create index if not exists seen_completions_idx on seen_completions (id);
create index if not exists seen_starts_idx on seen_starts (id);
create index if not exists seen_skips_idx on seen_skips (mcp_server_user_id, step_id);
create index if not exists seen_showings_idx on seen_showings (mcp_server_user_id, step_id);

-- name: against_completions
-- The completions of a portion that the table does not show: there is no row of user and step (no-row), it is of
-- a later event (later-row), or it has the event's id and other content (other-content). A row of an earlier event
-- is right, and what a correction covers needs none (covered). Rows that are what their event says are seen.
with
compared as (
  select
    given.number,
    given.id,
    case
      when given.completed_at <= correction.covers_until then 'covered'
      when kept.id is null then 'no-row'
      when
        kept.id = given.id and kept.completed_at = given.completed_at and kept.walkthrough_id = given.walkthrough_id
        and kept.mcp_server_id = given.mcp_server_id and kept.mcp_server_session_id = given.mcp_server_session_id
        and kept.metadata is not distinct from given.metadata
        then 'same'
      when kept.id = given.id and kept.completed_at = given.completed_at then 'other-content'
      when
        (
          kept.completed_at,
          kept.id collate "C",
          kept.mcp_server_id collate "C",
          kept.mcp_server_session_id collate "C",
          coalesce(kept.metadata::text, '') collate "C"
        ) > (
          given.completed_at,
          given.id collate "C",
          given.mcp_server_id collate "C",
          given.mcp_server_session_id collate "C",
          coalesce(given.metadata::text, '') collate "C"
        )
        then 'later-row'
      when kept.id = given.id then 'other-content'
      else 'earlier'
    end as cause,
    kept.id as row_id,
    kept.completed_at as row_at
  from heard_completions as given
  left join walkthrough_step_completions as kept on given.mcp_server_user_id = kept.mcp_server_user_id
    and given.step_id = kept.step_id
  left join completion_corrections as correction on given.mcp_server_user_id = correction.mcp_server_user_id
    and given.step_id = correction.step_id
),
seen as (
  insert into seen_completions (id)
  select id from compared
  where cause = 'same'
)
select
  number,
  cause,
  row_id,
  row_at
from compared
where cause in ('covered', 'no-row', 'later-row', 'other-content');

-- name: against_starts
-- As `against_completions`, for starts.
with
compared as (
  select
    given.number,
    given.id,
    case
      when kept.id is null then 'no-row'
      when
        kept.id = given.id and kept.started_at = given.started_at and kept.mcp_server_id = given.mcp_server_id
        and kept.mcp_server_session_id = given.mcp_server_session_id
        and kept.metadata is not distinct from given.metadata
        then 'same'
      when kept.id = given.id and kept.started_at = given.started_at then 'other-content'
      when
        (
          kept.started_at,
          kept.id collate "C",
          kept.mcp_server_id collate "C",
          kept.mcp_server_session_id collate "C",
          coalesce(kept.metadata::text, '') collate "C"
        ) > (
          given.started_at,
          given.id collate "C",
          given.mcp_server_id collate "C",
          given.mcp_server_session_id collate "C",
          coalesce(given.metadata::text, '') collate "C"
        )
        then 'later-row'
      when kept.id = given.id then 'other-content'
      else 'earlier'
    end as cause,
    kept.id as row_id,
    kept.started_at as row_at
  from heard_starts as given
  left join walkthrough_starts as kept on given.mcp_server_user_id = kept.mcp_server_user_id
    and given.walkthrough_id = kept.walkthrough_id
),
seen as (
  insert into seen_starts (id)
  select id from compared
  where cause = 'same'
)
select
  number,
  cause,
  row_id,
  row_at
from compared
where cause in ('no-row', 'later-row', 'other-content');

-- name: against_skips
-- As `against_completions`, for skips.
with
compared as (
  select
    given.*,
    case
      when kept.id is null then 'no-row'
      when
        kept.id = given.id and kept.skipped_at = given.skipped_at and kept.walkthrough_id = given.walkthrough_id
        and kept.mcp_server_id = given.mcp_server_id and kept.mcp_server_session_id = given.mcp_server_session_id
        and kept.reason is not distinct from given.reason and kept.metadata is not distinct from given.metadata
        then 'same'
      when kept.id = given.id and kept.skipped_at = given.skipped_at then 'other-content'
      when
        (
          kept.skipped_at,
          kept.id collate "C",
          kept.mcp_server_id collate "C",
          kept.mcp_server_session_id collate "C",
          coalesce(kept.reason, '') collate "C",
          coalesce(kept.metadata::text, '') collate "C"
        ) > (
          given.skipped_at,
          given.id collate "C",
          given.mcp_server_id collate "C",
          given.mcp_server_session_id collate "C",
          coalesce(given.reason, '') collate "C",
          coalesce(given.metadata::text, '') collate "C"
        )
        then 'later-row'
      when kept.id = given.id then 'other-content'
      else 'earlier'
    end as cause,
    kept.id as row_id,
    kept.skipped_at as row_at
  from heard_skips as given
  left join walkthrough_step_skips as kept on given.mcp_server_user_id = kept.mcp_server_user_id
    and given.step_id = kept.step_id
),
seen as (
  insert into seen_skips (mcp_server_user_id, step_id)
  select mcp_server_user_id, step_id from compared
  where cause = 'same'
)
select
  number,
  cause,
  row_id,
  row_at
from compared
where cause in ('no-row', 'later-row', 'other-content');

-- name: against_showings
-- As `against_completions`, for showings: an event between the first and the last of its row leaves no trace, and the
-- row is right. It begins with a later event (later-row), or ends with an earlier one (earlier-row). The walkthrough is
-- that of no certain event.
with
placed as (
  select
    given.*,
    kept.first_id,
    kept.first_shown_at,
    kept.last_id,
    kept.last_shown_at,
    (
      given.shown_at,
      given.id collate "C",
      given.mcp_server_id collate "C",
      given.mcp_server_session_id collate "C"
    ) < (
      kept.first_shown_at,
      kept.first_id collate "C",
      kept.mcp_server_id collate "C",
      kept.mcp_server_session_id collate "C"
    ) as is_before,
    given.id = kept.first_id and given.shown_at = kept.first_shown_at and given.mcp_server_id = kept.mcp_server_id
    and given.mcp_server_session_id = kept.mcp_server_session_id as is_first,
    (given.shown_at, given.id collate "C", coalesce(given.version, '') collate "C")
    > (kept.last_shown_at, kept.last_id collate "C", coalesce(kept.last_version, '') collate "C") as is_after,
    given.id = kept.last_id and given.shown_at = kept.last_shown_at
    and given.version is not distinct from kept.last_version as is_last
  from heard_showings as given
  left join walkthrough_step_showings as kept on given.mcp_server_user_id = kept.mcp_server_user_id
    and given.step_id = kept.step_id
),
seen as (
  insert into seen_showings (mcp_server_user_id, step_id, is_first)
  select mcp_server_user_id, step_id, true from placed
  where is_first
  union all
  select mcp_server_user_id, step_id, false from placed
  where is_last
),
compared as (
  select
    *,
    case
      when first_id is null then 'no-row'
      when is_before and (first_id, first_shown_at) = (id, shown_at) then 'other-content'
      when is_before then 'later-row'
      when is_after and (last_id, last_shown_at) = (id, shown_at) then 'other-content'
      when is_after then 'earlier-row'
      when first_id = id and not is_first or last_id = id and not is_last then 'other-content'
    end as cause,
    is_before or first_id = id and not is_first and not is_after as is_of_first
  from placed
)
select
  number,
  cause,
  case when is_of_first then first_id else last_id end as row_id,
  case when is_of_first then first_shown_at else last_shown_at end as row_at
from compared
where cause is not null;

-- name: against_corrections
-- The corrections of a portion that the tables do not show: neither it nor a newer one decides (not-corrected); it
-- decides, and there is no row (no-row), or one that it covers (covered-row). Rows that are of a correction are seen.
with
compared as (
  select
    given.number,
    given.event_id,
    given.covers_until,
    kept.id as row_id,
    case
      when
        correction.event_id is null
        or (correction.corrected_at, correction.event_id collate "C")
        < (given.corrected_at, given.event_id collate "C")
        or correction.covers_until < given.covers_until
        then 'not-corrected'
      when
        kept.completed_at <= correction.covers_until
        and (kept.id, kept.completed_at) is distinct from ('wtsc_' || correction.event_id, correction.completed_at)
        then 'covered-row'
      when correction.completed_at is not null and kept.id is null then 'no-row'
      else 'right'
    end as cause
  from heard_corrections as given
  left join completion_corrections as correction on given.mcp_server_user_id = correction.mcp_server_user_id
    and given.step_id = correction.step_id
  left join walkthrough_step_completions as kept on given.mcp_server_user_id = kept.mcp_server_user_id
    and given.step_id = kept.step_id
),
seen as (
  insert into seen_completions (id)
  select row_id from compared
  where row_id = 'wtsc_' || event_id
)
select
  number,
  cause,
  row_id,
  covers_until as row_at
from compared
where cause <> 'right';

-- name: against_erasures
-- Which of these people are not noted as erased, and of whom rows are left.
select
  given.mcp_server_user_id,
  case when erased.mcp_server_user_id is null then 'not-noted' else 'rows-left' end as cause
from unnest($1::text[]) as given (mcp_server_user_id)
left join erased_users as erased on given.mcp_server_user_id = erased.mcp_server_user_id
where
  erased.mcp_server_user_id is null
  or exists (select from walkthrough_step_completions where mcp_server_user_id = given.mcp_server_user_id)
  or exists (select from walkthrough_starts where mcp_server_user_id = given.mcp_server_user_id)
  or exists (select from walkthrough_step_skips where mcp_server_user_id = given.mcp_server_user_id)
  or exists (select from walkthrough_step_showings where mcp_server_user_id = given.mcp_server_user_id);

-- name: against_look_again
-- What is right now, in one snapshot: removes from what is doubted and says how many for which reason. What is
-- doubted for its content is right where an event that says what the row says was read, too.
with
now_right as (
  select
    doubted.ctid as place,
    case
      when doubted.kind <> 'erasure' and exists (
        select from erased_users where mcp_server_user_id = doubted.mcp_server_user_id
      ) then 'of_erased'
      when exists (
        select from waiting_events as event
        where event.topic = $1 and event.partition = doubted.partition and event."offset" = doubted."offset"
      ) then 'waiting'
      when doubted.kind = 'completion' and exists (
        select from completion_corrections as correction
        where
          correction.mcp_server_user_id = doubted.mcp_server_user_id and correction.step_id = doubted.step_id
          and doubted.happened_at <= correction.covers_until
      ) then 'covered'
      when doubted.kind = 'correction' and exists (
        select from completion_corrections as correction
        left join walkthrough_step_completions as kept on correction.mcp_server_user_id = kept.mcp_server_user_id
          and correction.step_id = kept.step_id
        where
          correction.mcp_server_user_id = doubted.mcp_server_user_id and correction.step_id = doubted.step_id
          and (correction.corrected_at, 'wtsc_' || correction.event_id collate "C")
          >= (doubted.happened_at, doubted.id collate "C")
          and correction.covers_until >= doubted.row_at
          and (
            kept.id is null and correction.completed_at is null
            or kept.completed_at > correction.covers_until
            or (kept.id, kept.completed_at) = ('wtsc_' || correction.event_id, correction.completed_at)
          )
      ) then 'changed'
      when doubted.kind = 'completion' and exists (
        select from walkthrough_step_completions as kept
        where
          kept.mcp_server_user_id = doubted.mcp_server_user_id and kept.step_id = doubted.step_id
          and (
            (
              kept.completed_at,
              kept.id collate "C",
              kept.mcp_server_id collate "C",
              kept.mcp_server_session_id collate "C",
              coalesce(kept.metadata::text, '') collate "C"
            ) < (
              doubted.happened_at,
              doubted.id collate "C",
              doubted.mcp_server_id collate "C",
              doubted.mcp_server_session_id collate "C",
              coalesce(doubted.metadata::text, '') collate "C"
            )
            and (
              kept.id <> doubted.id
              or exists (select from seen_completions as seen where seen.id = kept.id)
            )
            or kept.id = doubted.id and kept.completed_at = doubted.happened_at
            and kept.walkthrough_id = doubted.walkthrough_id and kept.mcp_server_id = doubted.mcp_server_id
            and kept.mcp_server_session_id = doubted.mcp_server_session_id
            and kept.metadata is not distinct from doubted.metadata
          )
      ) then 'changed'
      when doubted.kind = 'start' and exists (
        select from walkthrough_starts as kept
        where
          kept.mcp_server_user_id = doubted.mcp_server_user_id and kept.walkthrough_id = doubted.walkthrough_id
          and (
            (
              kept.started_at,
              kept.id collate "C",
              kept.mcp_server_id collate "C",
              kept.mcp_server_session_id collate "C",
              coalesce(kept.metadata::text, '') collate "C"
            ) < (
              doubted.happened_at,
              doubted.id collate "C",
              doubted.mcp_server_id collate "C",
              doubted.mcp_server_session_id collate "C",
              coalesce(doubted.metadata::text, '') collate "C"
            )
            and (
              kept.id <> doubted.id
              or exists (select from seen_starts as seen where seen.id = kept.id)
            )
            or kept.id = doubted.id and kept.started_at = doubted.happened_at
            and kept.mcp_server_id = doubted.mcp_server_id
            and kept.mcp_server_session_id = doubted.mcp_server_session_id
            and kept.metadata is not distinct from doubted.metadata
          )
      ) then 'changed'
      when doubted.kind = 'skip' and exists (
        select from walkthrough_step_skips as kept
        where
          kept.mcp_server_user_id = doubted.mcp_server_user_id and kept.step_id = doubted.step_id
          and (
            (
              kept.skipped_at,
              kept.id collate "C",
              kept.mcp_server_id collate "C",
              kept.mcp_server_session_id collate "C",
              coalesce(kept.reason, '') collate "C",
              coalesce(kept.metadata::text, '') collate "C"
            ) < (
              doubted.happened_at,
              doubted.id collate "C",
              doubted.mcp_server_id collate "C",
              doubted.mcp_server_session_id collate "C",
              coalesce(doubted.reason, '') collate "C",
              coalesce(doubted.metadata::text, '') collate "C"
            )
            and (
              kept.id <> doubted.id
              or exists (
                select from seen_skips as seen
                where seen.mcp_server_user_id = kept.mcp_server_user_id and seen.step_id = kept.step_id
              )
            )
            or kept.id = doubted.id and kept.skipped_at = doubted.happened_at
            and kept.walkthrough_id = doubted.walkthrough_id and kept.mcp_server_id = doubted.mcp_server_id
            and kept.mcp_server_session_id = doubted.mcp_server_session_id
            and kept.reason is not distinct from doubted.reason
            and kept.metadata is not distinct from doubted.metadata
          )
      ) then 'changed'
      when doubted.kind = 'showing' and exists (
        select from walkthrough_step_showings as kept
        where
          kept.mcp_server_user_id = doubted.mcp_server_user_id and kept.step_id = doubted.step_id
          and (
            (
              kept.first_shown_at,
              kept.first_id collate "C",
              kept.mcp_server_id collate "C",
              kept.mcp_server_session_id collate "C"
            ) < (
              doubted.happened_at,
              doubted.id collate "C",
              doubted.mcp_server_id collate "C",
              doubted.mcp_server_session_id collate "C"
            )
            and (
              kept.first_id <> doubted.id
              or exists (
                select from seen_showings as seen
                where
                  seen.mcp_server_user_id = kept.mcp_server_user_id and seen.step_id = kept.step_id and seen.is_first
              )
            )
            or kept.first_id = doubted.id and kept.first_shown_at = doubted.happened_at
            and kept.mcp_server_id = doubted.mcp_server_id
            and kept.mcp_server_session_id = doubted.mcp_server_session_id
          )
          and (
            (kept.last_shown_at, kept.last_id collate "C", coalesce(kept.last_version, '') collate "C")
            > (doubted.happened_at, doubted.id collate "C", coalesce(doubted.version, '') collate "C")
            and (
              kept.last_id <> doubted.id
              or exists (
                select from seen_showings as seen
                where
                  seen.mcp_server_user_id = kept.mcp_server_user_id and seen.step_id = kept.step_id
                  and not seen.is_first
              )
            )
            or kept.last_id = doubted.id and kept.last_shown_at = doubted.happened_at
            and kept.last_version is not distinct from doubted.version
          )
      ) then 'changed'
      when
        doubted.kind = 'erasure'
        and exists (select from erased_users where mcp_server_user_id = doubted.mcp_server_user_id)
        and not exists (
          select from walkthrough_step_completions where mcp_server_user_id = doubted.mcp_server_user_id
        )
        and not exists (select from walkthrough_starts where mcp_server_user_id = doubted.mcp_server_user_id)
        and not exists (select from walkthrough_step_skips where mcp_server_user_id = doubted.mcp_server_user_id)
        and not exists (select from walkthrough_step_showings where mcp_server_user_id = doubted.mcp_server_user_id)
        then 'changed'
      when exists (
        select from gone_events as gone
        where
          gone.topic = $1 and gone.partition = doubted.partition and gone.cause = 'skipped'
          and gone.acknowledged_at is not null and gone.from_offset <= doubted."offset"
          and (gone.until_offset is null or gone.until_offset > doubted."offset")
      ) then 'skipped'
    end as reason
  from doubted
),
removed as (
  delete from doubted
  using now_right
  where doubted.ctid = now_right.place and now_right.reason is not null
  returning now_right.reason
)
select
  reason,
  count(*) as events
from removed
group by reason;

-- name: against_letters
-- What has a dead letter was refused, whatever would be said of it today.
with removed as (
  delete from doubted
  using heard_letters as letter
  where
    doubted.partition = letter.partition and doubted."offset" = letter."offset"
    and doubted.checksum = letter.checksum
  returning doubted.partition
)
select count(*) from removed;

-- name: against_skipped
-- What an operator left behind, which nobody has acknowledged.
update doubted
set cause = 'skipped'
from gone_events as gone
where
  gone.topic = $1 and gone.partition = doubted.partition and gone.cause = 'skipped'
  and gone.from_offset <= doubted."offset"
  and (gone.until_offset is null or gone.until_offset > doubted."offset");

-- name: against_causes
-- How many events differ, by cause.
select
  cause,
  count(*) as events
from doubted
group by cause
order by cause;

-- name: against_list
-- The first events that differ, in the order of the log.
select
  kind,
  partition,
  "offset",
  id,
  mcp_server_user_id,
  walkthrough_id,
  step_id,
  happened_at,
  cause,
  row_id,
  row_at
from doubted
order by partition, "offset"
limit $1;

-- name: against_any_doubted
-- Whether anything is doubted still.
select exists (select from doubted);
