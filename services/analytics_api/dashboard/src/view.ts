/** The view in the address: read at the beginning and when somebody goes back, written at each change. */

import { useEffect, useState } from "preact/hooks";
import type { Api, Version, Walkthrough } from "./api";
import type { View } from "./state";
import { readView, writeView } from "./state";

/** Changes part of the view; with `push` as a step that the browser's back button undoes. */
export type Change = (part: Partial<View>, push?: boolean) => void;

/** What each tab of a walkthrough is given. */
export interface ViewProps {
  api: Api;
  view: View;
  walkthrough: Walkthrough;
  /** What edits made of it, the first version first; nothing until that is known. */
  versions: Version[];
  /** Grows when figures change. */
  tick: number;
  change: Change;
}

export function useView(): [View, Change] {
  const [view, setView] = useState(() => readView(location.search));
  useEffect(() => {
    const onPop = () => setView(readView(location.search));
    window.addEventListener("popstate", onPop);
    return () => window.removeEventListener("popstate", onPop);
  }, []);
  const change = (part: Partial<View>, push = false) => {
    setView((before) => {
      const next = { ...before, ...part };
      const address = writeView(next) || location.pathname;
      if (push) history.pushState(null, "", address);
      else history.replaceState(null, "", address);
      return next;
    });
  };
  return [view, change];
}
