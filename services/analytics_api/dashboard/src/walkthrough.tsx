/** A walkthrough: which journeys, its key figures, and one of its views. */

import type { JSX } from "preact";
import type { Summary, Versions } from "./api";
import { walkthroughPath } from "./api";
import { PartsInShort } from "./breakdown";
import { CompareView } from "./compare";
import { useAnswer } from "./data";
import { Filters } from "./filters";
import { FlowView } from "./flow";
import { KeyFigures } from "./key-figures";
import { PathsView } from "./paths";
import { PeopleView } from "./people";
import { SegmentList } from "./segment-list";
import type { Tab } from "./state";
import { TABS } from "./state";
import { StepsView } from "./steps";
import { TrendsView } from "./trends";
import type { ViewProps } from "./view";

const TAB_NAMES: Record<Tab, string> = {
  flow: "Flow",
  paths: "Paths",
  steps: "Steps",
  trends: "Trends",
  compare: "Compare",
  people: "People",
};

const TAB_VIEWS: Record<Tab, (props: ViewProps) => JSX.Element> = {
  flow: FlowView,
  paths: PathsView,
  steps: StepsView,
  trends: TrendsView,
  compare: CompareView,
  people: PeopleView,
};

type Props = Omit<ViewProps, "walkthrough" | "versions"> & { answer: Summary };

export function WalkthroughPage(props: Props): JSX.Element {
  const { answer, view, change } = props;
  const { walkthrough } = answer;
  const asked = useAnswer<Versions>(props.api, walkthroughPath(walkthrough.id, "versions"), {}, props.tick);
  const versions = asked.data?.versions ?? [];
  const open = (tab: Tab) => {
    const everybody = tab === "people" ? { figure: [], label: "" } : {};
    change({ tab, journey: "", session: "", ...everybody }, true);
  };
  const TabView = TAB_VIEWS[view.tab];
  return (
    <>
      <h1 class="lead">{walkthrough.title}</h1>
      <Filters api={props.api} view={view} walkthrough={walkthrough} versions={versions} change={change} />
      {view.explain && (
        <SegmentList
          api={props.api}
          view={view}
          walkthrough={walkthrough}
          tick={props.tick}
          change={change}
        />
      )}
      <KeyFigures answer={answer} change={change} />
      {view.breakdown && (
        <PartsInShort
          api={props.api}
          view={view}
          walkthrough={walkthrough}
          tick={props.tick}
          change={change}
        />
      )}
      <nav class="tabs" aria-label="Views">
        {TABS.map((tab) => (
          <button
            type="button"
            key={tab}
            aria-current={view.tab === tab ? "page" : undefined}
            onClick={() => open(tab)}
          >
            {TAB_NAMES[tab]}
          </button>
        ))}
      </nav>
      <TabView
        api={props.api}
        view={view}
        walkthrough={walkthrough}
        versions={versions}
        tick={props.tick}
        change={change}
      />
    </>
  );
}
