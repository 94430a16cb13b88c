// Where the time of one task went, as `complete` tells it.

import { el, svg } from "./dom.js";
import { time } from "./words.js";

/** The stages in `timings` of the webhook, in order. */
const STAGES = ["queue", "fetch", "wait", "denoise", "decode", "upload"];
const WIDTH = 1000;
/** A stage that took any time at all can be seen. */
const LEAST = 4;

/** Pairs of a stage and its milliseconds; none for a task whose webhook told none. */
export function timings(task) {
  const told = task.metadata?.timings;
  return told ? STAGES.filter((name) => name in told).map((name) => [name, told[name]]) : [];
}

/** One bar with a part for each stage, and the numbers below it. */
export function chart(task) {
  const all = timings(task);
  if (!all.length) return null;
  const total = all.reduce((sum, [, ms]) => sum + ms, 0);
  const widths = all.map(([, ms]) => (ms ? Math.max((ms / total) * WIDTH, LEAST) : 0));
  const scale = WIDTH / (widths.reduce((sum, each) => sum + each, 0) || 1);
  let x = 0;
  const parts = all.map(([name, ms], index) => {
    const width = widths[index] * scale;
    const part = svg("rect", { "data-stage": name, "data-ms": ms, x, y: 0, width, height: 10 });
    x += width;
    return part;
  });
  const words = all.map(([name, ms]) => `${name} ${time(ms)}`).join(", ");
  const legend = ([name, ms]) => el("li", { "data-ms": ms }, el("i", { "data-stage": name }), `${name} `, el("b", {}, time(ms)));
  return el(
    "div",
    { class: "stages" },
    svg("svg", { class: "bar-chart", viewBox: `0 0 ${WIDTH} 10`, preserveAspectRatio: "none", role: "img", "aria-label": `Times of the stages: ${words}` }, parts),
    el("ul", { "aria-label": "Stage timings" }, all.map(legend)),
  );
}
