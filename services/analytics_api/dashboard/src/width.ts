/** How wide an element is. */

import { useCallback, useRef, useState } from "preact/hooks";

/** What to give an element as its ref, and its width in pixels: 900 until that is known. */
export function useWidth(): [(element: HTMLElement | null) => void, number] {
  const [width, setWidth] = useState(900);
  const seen = useRef<ResizeObserver | null>(null);
  const measure = useCallback((element: HTMLElement | null) => {
    seen.current?.disconnect();
    if (!element) return;
    seen.current = new ResizeObserver(([entry]) => entry && setWidth(Math.floor(entry.contentRect.width)));
    seen.current.observe(element);
  }, []);
  return [measure, width];
}
