/** The bar at the top: which walkthrough, how fresh its figures are, the theme. */

import type { JSX } from "preact";
import { useEffect, useState } from "preact/hooks";
import type { Freshness, Overview } from "./api";
import { ago } from "./format";
import { badgeOf } from "./freshness";
import type { Live } from "./live";
import { Logo } from "./logo";

interface Props {
  walkthrough: string;
  all: Overview["walkthroughs"];
  live: Live;
  /** How fresh the answers are, while the live stream says nothing. */
  fallback: Freshness | null;
  /** Opens a walkthrough; "" is the organization. */
  open: (walkthrough: string) => void;
  forgetKey: () => void;
}

export function Header(props: Props): JSX.Element {
  return (
    <header class="top">
      <button type="button" class="home" onClick={() => props.open("")}>
        <Logo /> Stepstream
      </button>
      <label class="picker">
        <span class="visually-hidden">Walkthrough</span>
        <select value={props.walkthrough} onChange={(e) => props.open(e.currentTarget.value)}>
          <option value="">All walkthroughs</option>
          {props.all.map((w) => (
            <option key={w.walkthrough_id} value={w.walkthrough_id}>
              {w.title}
            </option>
          ))}
        </select>
      </label>
      <FreshnessBadge live={props.live} fallback={props.fallback} isWatching={props.walkthrough !== ""} />
      <ThemeButton />
      <button type="button" class="quiet" onClick={props.forgetKey}>
        Forget key
      </button>
    </header>
  );
}

function useNow(): number {
  const [now, setNow] = useState(Date.now());
  useEffect(() => {
    const timer = window.setInterval(() => setNow(Date.now()), 1_000);
    return () => window.clearInterval(timer);
  }, []);
  return now;
}

function FreshnessBadge(props: { live: Live; fallback: Freshness | null; isWatching: boolean }): JSX.Element {
  const now = useNow();
  const fresh = props.live.freshness ?? props.fallback;
  const { state, text } = badgeOf(fresh, props.isWatching ? props.live.connection : null);
  const newest = fresh?.newest_event_at;
  return (
    <p class={`freshness ${state}`} title={fresh?.problem ?? undefined}>
      <i aria-hidden="true" /> <span role="status">{text}</span>
      {newest ? <small>newest event {ago(newest, now)}</small> : null}
    </p>
  );
}

const THEME = "stepstream.theme";
const NEXT_THEME = new Map([
  ["auto", "light"],
  ["light", "dark"],
]);

function ThemeButton(): JSX.Element {
  const [theme, setTheme] = useState(() => localStorage.getItem(THEME) ?? "auto");
  useEffect(() => {
    if (theme === "auto") {
      delete document.documentElement.dataset.theme;
      localStorage.removeItem(THEME);
    } else {
      document.documentElement.dataset.theme = theme;
      localStorage.setItem(THEME, theme);
    }
  }, [theme]);
  return (
    <button type="button" class="quiet" onClick={() => setTheme(NEXT_THEME.get(theme) ?? "auto")}>
      Theme: {theme}
    </button>
  );
}
