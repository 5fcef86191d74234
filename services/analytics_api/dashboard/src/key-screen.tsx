/** Asks for the API key. */

import type { JSX } from "preact";
import { useEffect, useState } from "preact/hooks";
import { Logo } from "./logo";

export function KeyScreen(props: {
  denied: string;
  enter: (key: string, keep: boolean) => void;
}): JSX.Element {
  const [text, setText] = useState("");
  const [keep, setKeep] = useState(false);
  useEffect(() => {
    document.title = "Stepstream";
  }, []);
  return (
    <main class="key-screen">
      <h1>
        <Logo /> Stepstream
      </h1>
      <p>Where people go in your walkthroughs, where they stop, and how long it takes.</p>
      <form
        onSubmit={(event) => {
          event.preventDefault();
          if (text.trim()) props.enter(text.trim(), keep);
        }}
      >
        <label for="key">API key of your organization</label>
        <input
          id="key"
          type="password"
          autocomplete="off"
          spellcheck={false}
          value={text}
          placeholder="sst_…"
          aria-describedby="key-help"
          aria-invalid={props.denied !== ""}
          onInput={(e) => setText(e.currentTarget.value)}
        />
        <label class="check">
          <input type="checkbox" checked={keep} onChange={(e) => setKeep(e.currentTarget.checked)} /> Keep it
          on this computer
        </label>
        <button type="submit" class="primary">
          Show the figures
        </button>
        {props.denied && (
          <p class="problem" role="alert">
            {props.denied}
          </p>
        )}
        <p id="key-help" class="hint">
          An operator makes one: <code>stepstream keys create --organization ID</code>
        </p>
      </form>
    </main>
  );
}
