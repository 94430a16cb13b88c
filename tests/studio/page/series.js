// Tasks that were published together, side by side: one prompt and one seed in every style, or one style with several seeds.

import { cancelAll } from "./cancel.js";
import { compare } from "./compare.js";
import { showDetails } from "./details.js";
import { byId, el, keep, setText } from "./dom.js";
import { image } from "./preview.js";
import { store, watch } from "./store.js";
import { settings, sides, stateOf } from "./words.js";

const figures = new Map();
/** The series that a person has chosen; none for the newest. */
let chosen = null;
/** One that was just published, on a page whose form hides it. */
let awaited = null;

const narrow = matchMedia("(max-width: 56rem)");

export function start() {
  watch(render);
  document.addEventListener("published", ({ detail: ids }) => {
    if (ids.length < 2) return;
    chosen = null;
    awaited = narrow.matches ? ids[0] : null;
    render();
  });
  byId("series-choice").addEventListener("change", (event) => {
    chosen = Number(event.target.value);
    render();
  });
  byId("series-compare").addEventListener("click", () => compare(members().filter((task) => task.picture)));
  byId("series-cancel").addEventListener("click", () => cancelAll(members().filter((task) => !task.end && task.cancel_ms === null), byId("series-error")));
}

const numbers = () => [...new Set([...store.tasks.values()].map((task) => task.series).filter((id) => id !== null))].sort((a, b) => b - a);

function current() {
  const all = numbers();
  return all.includes(chosen) ? chosen : all[0];
}

const members = () => [...store.tasks.values()].filter((task) => task.series === current());

function render() {
  const all = numbers();
  byId("series-section").hidden = all.length === 0;
  if (!all.length) return;
  const tasks = members();
  const { same, own } = difference(tasks);
  setText(byId("series-same"), same.map(([name, value]) => (name === "Tags" ? value : `${name.toLowerCase()} ${value}`)).join(" · "));
  choice(all);
  keep(byId("series"), tasks.map((task) => figure(task, own)));
  byId("series-compare").hidden = tasks.filter((task) => task.picture).length < 2;
  byId("series-cancel").hidden = !tasks.some((task) => !task.end && task.cancel_ms === null);
  if (all.includes(awaited)) {
    awaited = null;
    byId("series-title").scrollIntoView();
  }
}

/** What all have in common, and the names of what differs. */
function difference(tasks) {
  const all = tasks.map((task) => new Map(settings(task)));
  const isSame = (name) => all.every((each) => each.get(name) === all[0].get(name));
  const names = [...all[0].keys()].filter((name) => name !== "Artist");
  return { same: names.filter(isSame).map((name) => [name, all[0].get(name)]), own: names.filter((name) => !isSame(name)) };
}

function choice(all) {
  const select = byId("series-choice");
  byId("series-choice-field").hidden = all.length < 2;
  if ([...select.options].map(({ value }) => Number(value)).join() !== all.join()) {
    select.replaceChildren(...all.map((id) => el("option", { value: id }, `from #${id}`)));
  }
  select.value = current();
}

function figure(task, own) {
  if (!figures.has(task.id)) figures.set(task.id, make(task));
  const item = figures.get(task.id);
  item.update(task, own);
  return item.node;
}

function make(task) {
  const picture = image(task);
  const [name, state] = [el("b", {}), el("small", {})];
  const open = el("button", { type: "button", class: "picture", onclick: () => showDetails(task.id) }, picture.node);
  const [width, height] = sides(task);
  open.style.aspectRatio = `${width} / ${height}`;
  return {
    node: el("li", { class: "card figure", "data-id": task.id }, open, el("div", { class: "caption" }, el("p", {}, name), state)),
    update(now, own) {
      const values = new Map(settings(now));
      const label = own.map((each) => (each === "Style" ? values.get(each) : `${each} ${values.get(each)}`)).join(" · ") || `#${now.id}`;
      picture.update(now);
      setText(name, label);
      setText(state, stateOf(now));
      state.dataset.end = now.end?.kind ?? "";
      open.setAttribute("aria-label", `Details of ${label}: ${stateOf(now)}`);
    },
  };
}
