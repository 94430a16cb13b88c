// The pictures, newest first, and the choice of those to compare.

import { compare } from "./compare.js";
import { showDetails } from "./details.js";
import { byId, el, keep, setText } from "./dom.js";
import { store, watch } from "./store.js";
import { summary, time, title } from "./words.js";

const figures = new Map();
const chosen = new Set();

export function start() {
  watch(render);
  byId("compare").addEventListener("click", () => compare([...chosen].map((id) => store.tasks.get(id))));
  byId("clear").addEventListener("click", () => {
    chosen.clear();
    for (const { box } of figures.values()) box.checked = false;
    showChoice();
    byId("gallery-title").scrollIntoView({ block: "nearest" });
  });
}

function render() {
  const painted = [...store.tasks.values()].filter((task) => task.picture).reverse();
  keep(byId("gallery"), painted.map((task) => figure(task).node));
  byId("no-pictures").hidden = painted.length > 0;
}

function figure(task) {
  if (!figures.has(task.id)) figures.set(task.id, make(task));
  return figures.get(task.id);
}

function make(task) {
  const name = `${title(task)}, ${summary(task)}`;
  const picture = el("img", { src: `/pictures/${task.picture}`, alt: name, loading: "lazy", width: 256, height: 256 });
  const open = el("button", { type: "button", class: "picture", "aria-label": `Details of ${name}`, onclick: () => showDetails(task.id) }, picture);
  const box = el("input", { type: "checkbox", "aria-label": `Compare ${name}`, onchange: () => choose(task.id, box.checked) });
  const caption = el(
    "div",
    { class: "caption" },
    el("p", {}, title(task)),
    el("p", { class: "soft" }, summary(task)),
    el("div", { class: "foot" }, el("label", {}, box, "Compare"), el("small", {}, time(task.ended_ms))),
  );
  return { box, node: el("li", { class: "card figure", "data-id": task.id }, open, caption) };
}

function choose(id, on) {
  if (on) chosen.add(id);
  else chosen.delete(id);
  showChoice();
}

function showChoice() {
  const enough = chosen.size > 1;
  byId("compare").hidden = !enough;
  byId("clear").hidden = chosen.size === 0;
  setText(byId("compare"), `Compare ${chosen.size} pictures`);
}
