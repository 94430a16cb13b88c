// One task: the five stations it has passed, its progress, and the time of its stages.

import { el, setText } from "./dom.js";
import { stageGroups, time } from "./words.js";

const STATIONS = [
  ["broker", "RabbitMQ"],
  ["relay", "Relay"],
  ["queue", "SQS"],
  ["function", "Function"],
  ["storage", "S3"],
];
const MILESTONES = [0, 25, 50, 75, 90];

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

/** A bar with the milestones of progress webhooks. */
export function progress() {
  const bar = el("progress", { max: 100, value: 0, "aria-label": "Progress" });
  const ticks = MILESTONES.slice(1).map((percent) => {
    const tick = el("i", { "data-percent": percent });
    tick.style.setProperty("--at", `${percent}%`);
    return tick;
  });
  const says = el("p", { class: "says" });
  return {
    node: el("div", {}, el("div", { class: "progress" }, bar, el("div", { class: "ticks", "aria-hidden": "true" }, ticks)), says),
    update(task) {
      const now = task.progress.at(-1);
      const percent = task.end?.kind === "complete" ? 100 : (now?.percent ?? 0);
      bar.value = percent;
      ticks.forEach((tick) => tick.classList.toggle("reached", task.progress.some((progress) => progress.percent >= Number(tick.dataset.percent))));
      const held = note(task);
      says.classList.toggle("held", Boolean(held) && !task.end);
      setText(says, held || (now ? `${now.percent} %, step ${now.step} of ${now.steps}, about ${now.seconds_left} s left` : "waiting for its first step"));
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

/** Where the time in the function went. */
export function stages(task) {
  const groups = stageGroups(task).filter(([, ms]) => ms > 0);
  if (!groups.length) return null;
  const part = ([name, ms]) => {
    const node = el("i", { "data-stage": name });
    node.style.setProperty("--share", ms);
    return node;
  };
  const legend = ([name, ms]) => el("li", {}, el("i", { "data-stage": name }), `${name} `, el("b", {}, time(ms)));
  return el(
    "div",
    { class: "stages" },
    el("div", { class: "stage-bar", "aria-hidden": "true" }, groups.map(part)),
    el("ul", { "aria-label": "Stage timings" }, groups.map(legend)),
  );
}
