/** The sign of Stepstream. */

import type { JSX } from "preact";

export function Logo(): JSX.Element {
  return (
    <svg class="logo" viewBox="0 0 32 32" width="22" height="22" aria-hidden="true">
      <rect width="32" height="32" rx="7" fill="var(--accent)" />
      <path d="M5 9c9 0 12 1 22 1v6C17 16 14 13 5 13z" fill="#fff" />
      <path d="M5 17c8 0 10 4 22 8v-3C17 20 13 15 5 15z" fill="#ffb98a" />
    </svg>
  );
}
