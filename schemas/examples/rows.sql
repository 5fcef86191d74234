-- The rows that examples/valid and examples/refused name: an organization of their own. Again, it changes nothing.
begin;
insert into organization (id, name, slug, created_at)
values ('org_examples', 'Examples', 'stepstream-examples', now())
on conflict do nothing;

insert into mcp_servers (id, organization_id, name, product_platform_or_tool, slug)
values ('s7Yw2nQe', 'org_examples', 'Examples', 'Examples', 'stepstream-examples')
on conflict do nothing;

insert into walkthroughs (id, organization_id, title, status)
values
('wt_9fQ2xL7b', 'org_examples', 'A walkthrough of the examples', 'published'),
(repeat('w', 64), 'org_examples', 'One whose ids are as long as can be', 'published')
on conflict do nothing;

insert into walkthrough_steps (id, walkthrough_id, title, content_fields, display_order)
select
  step.id,
  step.walkthrough_id,
  step.title,
  '{"version": "v1", "introductionForAgent": "", "contextForAgent": "", "contentForUser": "", "operationsForAgent": ""}',
  step.display_order
from (
  values
  ('wts_Rt41vKp8', 'wt_9fQ2xL7b', 'Install', 0),
  ('wts_Zt4n8Kd1', 'wt_9fQ2xL7b', 'Invite a colleague', 1),
  ('wts_Lc5d9Gw2', 'wt_9fQ2xL7b', 'Configure', 2),
  ('wts_Hy3k7Bn6', 'wt_9fQ2xL7b', 'Try it', 3),
  ('étape-1', 'wt_9fQ2xL7b', 'Encore une étape', 4),
  (repeat('x', 64), repeat('w', 64), 'The only step', 0)
) as step (id, walkthrough_id, title, display_order)
on conflict do nothing;

insert into mcp_server_walkthroughs (id, mcp_server_id, walkthrough_id)
values
('offer_examples_1', 's7Yw2nQe', 'wt_9fQ2xL7b'),
('offer_examples_2', 's7Yw2nQe', repeat('w', 64))
on conflict do nothing;

insert into mcp_server_user (id)
values ('mcpu_k3Jd82LsQ0aZ'), ('mcpu_p8Wm41RfYt6H'), ('山田太郎'), (repeat('ÿ', 64))
on conflict do nothing;

insert into mcp_server_session (mcp_server_session_id, mcp_server_slug, connection_date, mcp_server_user_id)
values
('mss_5d0c1e7f2a9b4c68', 'stepstream-examples', date '2025-11-24', 'mcpu_k3Jd82LsQ0aZ'),
('mss_b81f04c6e7a2d935', 'stepstream-examples', date '2025-11-24', 'mcpu_p8Wm41RfYt6H'),
('👩🏽‍💻', 'stepstream-examples', date '2025-11-24', '山田太郎'),
(repeat('s', 64), 'stepstream-examples', date '2025-11-24', repeat('ÿ', 64))
on conflict do nothing;
commit;
