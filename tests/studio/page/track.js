// One task: the five stations it has passed, and its progress.

import { waitsFor } from "./cancel.js";
import { el, setText } from "./dom.js";
import { time } from "./words.js";

const STATIONS = [
  ["broker", "RabbitMQ"],
  ["relay", "Relay"],
  ["queue", "SQS"],
  ["function", "Function"],
  ["storage", "S3"],
];

/** Five stations; a station is lit by what was seen there. */
export function stations() {
  const items = STATIONS.map(([key, name]) => {
    const seen = el("small", {}, "not yet");
    return { key, seen, node: el("li", { "data-station": key }, el("i"), el("span", {}, name), seen) };
  });
  const node = el("ol", { class: "stations", "aria-label": "Stations" }, items.map((item) => item.node));
  return {
    node,
    update(task) {
      const lit = items.map(({ key }) => task.marks.find((mark) => mark.station === key && mark.good));
      const last = lit.findLastIndex(Boolean);
      const held = isHeld(task);
      items.forEach((item, index) => {
        const mark = lit[index];
        item.node.dataset.state = !mark ? "dark" : index === last && !task.end ? (held ? "held" : "now") : "lit";
        setText(item.seen, mark ? `+${time(mark.at_ms)}` : "not yet");
      });
    },
  };
}

function isHeld(task) {
  const throttled = task.refusals > 0 && !task.marks.some((mark) => mark.station === "queue");
  return throttled || task.marks.at(-1)?.good === false;
}

/** A bar with a tick for each progress webhook that came. */
export function progress() {
  const bar = el("progress", { max: 100, value: 0, "aria-label": "Progress" });
  const ticks = el("div", { class: "ticks", "aria-hidden": "true" });
  const line = el("div", { class: "progress", hidden: true }, bar, ticks);
  const says = el("p", { class: "says" });
  const tick = ({ percent }) => {
    const node = el("i", { "data-percent": percent });
    node.style.setProperty("--at", `${percent}%`);
    return node;
  };
  return {
    node: el("div", { class: "painting" }, line, says),
    update(task) {
      const now = task.progress.at(-1);
      line.hidden = !now;
      bar.value = task.end?.kind === "complete" ? 100 : (now?.percent ?? 0);
      if (ticks.childElementCount !== task.progress.length) ticks.replaceChildren(...task.progress.map(tick));
      const held = note(task);
      says.classList.toggle("held", Boolean(held) && !task.end);
      setText(says, held || waitsFor(task) || (now ? `${now.percent} %, step ${now.step} of ${now.steps}, about ${now.seconds_left} s left` : "waiting for its first step"));
    },
  };
}

/** What holds a task up, if anything does. */
function note(task) {
  if (!isHeld(task)) return "";
  const last = task.marks.at(-1);
  if (last?.good === false) return last.what;
  return `SQS did not take it (${task.refusals}×); the relay tries again`;
}
