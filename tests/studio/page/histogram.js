// How long the pictures of this run took, from the publish to `complete`.

import { byId, el, setText, svg } from "./dom.js";
import { store, watch } from "./store.js";
import { time } from "./words.js";

/** Widths of a bin in milliseconds; the first that needs no more bins than MOST is taken. */
const WIDTHS = [100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 30_000, 60_000, 120_000, 300_000, 600_000];
const MOST = 12;
/** Fewer bins would be walls; empty ones stand beside them. */
const FEWEST = 7;
const HEIGHT = 100;

export function start() {
  let shown = "";
  watch(() => {
    const all = latencies();
    if (all.join() === shown) return;
    shown = all.join();
    byId("latency-section").hidden = all.length === 0;
    if (all.length) render(all);
  });
}

/** Milliseconds of each picture of this run, ascending. */
function latencies() {
  const painted = [...store.tasks.values()].filter((task) => task.id >= store.first && task.end?.kind === "complete");
  return painted.map((task) => task.ended_ms).sort((a, b) => a - b);
}

/** The value that so many of a hundred do not exceed, by the nearest rank. */
export function percentile(ascending, percent) {
  return ascending[Math.max(Math.ceil((percent / 100) * ascending.length) - 1, 0)];
}

/** Bins of one width that cover all values: where each begins, where it ends, and how many it has. */
export function bins(ascending) {
  const [least, most] = [ascending[0], ascending.at(-1)];
  const count = (width) => Math.floor(most / width) - Math.floor(least / width) + 1;
  const width = WIDTHS.find((each) => count(each) <= MOST) ?? Math.ceil(most / MOST);
  const missing = Math.max(FEWEST - count(width), 0);
  const first = Math.max(Math.floor(least / width) - Math.floor(missing / 2), 0);
  return Array.from({ length: count(width) + missing }, (_, index) => {
    const from = (first + index) * width;
    return { from, to: from + width, count: ascending.filter((ms) => ms >= from && ms < from + width).length };
  });
}

function render(all) {
  const found = bins(all);
  const highest = Math.max(...found.map(({ count }) => count));
  const bar = ({ from, to, count }, index) => {
    const height = (count / highest) * HEIGHT;
    const shape = { class: "bin", "data-from": from, "data-count": count, x: index + 0.04, y: HEIGHT - height, width: 0.92, height };
    return svg("rect", shape, svg("title", {}, document.createTextNode(`${range({ from, to })}: ${count}`)));
  };
  const [median, high] = [percentile(all, 50), percentile(all, 95)];
  const at = (ms) => (ms - found[0].from) / (found[0].to - found[0].from);
  const mark = svg("line", { class: "median", x1: at(median), x2: at(median), y1: 0, y2: HEIGHT });
  const words = found.map((bin) => `${range(bin)}: ${bin.count}`).join("; ");
  const picture = svg(
    "svg",
    { viewBox: `0 0 ${found.length} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": `Histogram. ${words}` },
    [...found.map(bar), mark],
  );
  byId("latency-chart").replaceChildren(picture, el("div", { class: "axis", "aria-hidden": "true" }, el("span", {}, time(found[0].from)), el("span", {}, time(found.at(-1).to))));
  const facts = [["pictures", String(all.length)], ["median", time(median)], ["95 % within", time(high)], ["longest", time(all.at(-1))]];
  byId("latency-facts").replaceChildren(...facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", { "data-fact": name }, value))));
  setText(byId("latency-highest"), `highest bar: ${highest}`);
}

const range = ({ from, to }) => `${time(from)} to ${time(to)}`;
