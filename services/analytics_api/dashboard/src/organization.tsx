/** What is shown of the organization while no walkthrough is: all walkthroughs, or what was refused. */

import type { JSX } from "preact";
import type { Api, Overview, RefusedEvents } from "./api";
import type { Answering } from "./data";
import { count } from "./format";
import { OverviewTable } from "./overview";
import { Answered } from "./parts";
import { RefusedView, refusedLately } from "./refused";
import type { Page } from "./state";
import { PAGES } from "./state";

export const PAGE_NAMES: Record<Page, string> = { walkthroughs: "Walkthroughs", refused: "Refused events" };

export function OrganizationPages(props: {
  api: Api;
  page: Page;
  overview: Answering<Overview>;
  refused: Answering<RefusedEvents | null>;
  open: (walkthrough: string, server?: string) => void;
  openPage: (page: Page) => void;
}): JSX.Element {
  return (
    <>
      <Tabs page={props.page} lately={refusedLately(props.refused.data, Date.now())} open={props.openPage} />
      {props.page === "refused" ? (
        <Answered asked={props.refused}>
          {(answer) => answer && <RefusedView api={props.api} answer={answer} />}
        </Answered>
      ) : (
        <Answered asked={props.overview}>
          {(answer) => <OverviewTable overview={answer} open={props.open} />}
        </Answered>
      )}
    </>
  );
}

function Tabs(props: { page: Page; lately: number; open: (page: Page) => void }): JSX.Element {
  return (
    <nav class="tabs" aria-label="Organization">
      {PAGES.map((page) => (
        <button
          type="button"
          key={page}
          aria-current={props.page === page ? "page" : undefined}
          onClick={() => props.open(page)}
        >
          {PAGE_NAMES[page]}
          {page === "refused" && props.lately > 0 && (
            <span class="count">
              {count(props.lately)}
              <span class="visually-hidden"> {props.lately === 1 ? "class" : "classes"} in the last day</span>
            </span>
          )}
        </button>
      ))}
    </nav>
  );
}
