// Tasks on their way, the one that ended last, and those that ended without a picture.

import { cancelButton } from "./cancel.js";
import { chart } from "./chart.js";
import { announce, byId, el, keep, setText } from "./dom.js";
import { showDetails } from "./details.js";
import { begun, image } from "./preview.js";
import { store, watch } from "./store.js";
import { progress, stations } from "./track.js";
import { ending, styleName, summary, time, title } from "./words.js";

const cards = new Map();
const failures = new Map();

export function start() {
  watch((task, before) => {
    if (task) tell(task, before);
    render();
  });
}

/** What a person who does not look should hear: the end, and of progress the beginning and each quarter. */
function tell(task, before) {
  const quarter = (of) => (of?.progress.length ? Math.floor(of.progress.at(-1).percent / 25) : -1);
  if (task.end && !before?.end) announce(`${title(task)}: ${ending(task)}`);
  else if (quarter(task) > quarter(before)) announce(`${title(task)}: ${task.progress.at(-1).percent} %`);
}

function render() {
  const tasks = [...store.tasks.values()];
  const open = tasks.filter((task) => !task.end);
  const last = tasks.filter((task) => task.end && cards.has(task.id)).sort((a, b) => ended(b) - ended(a));
  const shown = [...open, ...last.slice(0, 1)];
  keep(byId("tasks"), shown.map((task) => node(cards, card, task)));
  for (const id of [...cards.keys()]) if (!shown.some((task) => task.id === id)) cards.delete(id);
  byId("no-tasks").hidden = shown.length > 0;
  const failed = tasks.filter((task) => task.end && task.end.kind !== "complete").reverse();
  keep(byId("failures"), failed.map((task) => node(failures, failure, task)));
  byId("failures-section").hidden = failed.length === 0;
}

const ended = (task) => task.published_ms + task.ended_ms;

function node(made, make, task) {
  if (!made.has(task.id)) made.set(task.id, make(task));
  const item = made.get(task.id);
  if (item.shown !== task) item.update(task);
  item.shown = task;
  return item.node;
}

function card(task) {
  const [way, bar, picture] = [stations(), progress(), image(task)];
  const [state, timings, warnings] = [el("p", { class: "state" }), el("div", { class: "timings" }), el("ul", { class: "warnings" })];
  const wrong = el("p", { class: "error", role: "alert" });
  const cancel = cancelButton(task, wrong);
  const head = el("div", { class: "head", tabindex: "-1" }, el("h3", {}, title(task)), el("p", { class: "soft" }, `#${task.id} · ${summary(task)}`), begun(task));
  const frame = el("div", { class: "frame" }, picture.node);
  return {
    node: el(
      "li",
      { class: "card task", "data-id": task.id },
      frame,
      el("div", { class: "top" }, head, state, cancel.node),
      el("div", { class: "track" }, way.node, bar.node, timings, warnings, wrong),
    ),
    update(now) {
      way.update(now);
      bar.update(now);
      picture.update(now);
      cancel.update(now);
      frame.hidden = picture.node.hidden;
      bar.node.hidden = Boolean(now.end);
      const isFocused = document.activeElement === cancel.node;
      cancel.node.hidden = Boolean(now.end);
      // The focus would be lost with the button.
      if (isFocused && now.end) head.focus();
      setText(state, now.end ? ending(now) : now.receives > 1 ? `receive ${now.receives}` : "");
      state.dataset.end = now.end?.kind ?? "";
      const spent = now.end && chart(now);
      timings.replaceChildren(...(spent ? [spent] : []));
      warnings.replaceChildren(...(now.metadata?.warnings ?? []).map(({ message }) => el("li", {}, message)));
    },
  };
}

function failure(task) {
  const what = task.end.kind === "failed" ? task.end.code : task.end.kind.toUpperCase();
  const said = task.end.kind === "failed" ? task.end.message : ending(task);
  const more = el("button", { type: "button", class: "quiet", onclick: () => showDetails(task.id) }, "Its way");
  more.setAttribute("aria-label", `The way of task ${task.id}`);
  const retries = task.end.retries ? ` · ${task.end.retries} retries` : "";
  const head = el("p", {}, el("code", {}, what), ` #${task.id} · ${title(task)} · ${styleName(task.style)} · after ${time(task.ended_ms)}${retries}`);
  return {
    node: el("li", { class: "card failure", "data-id": task.id, "data-end": task.end.kind }, el("div", {}, head, begun(task), el("p", { class: "message" }, said)), more),
    update() {},
  };
}
