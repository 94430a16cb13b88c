// Pictures side by side: common values once, and the different ones under each.

import { byId, el } from "./dom.js";
import { heading } from "./parts.js";
import { settings, title } from "./words.js";

export function compare(tasks) {
  const dialog = byId("side-by-side");
  const all = tasks.map((task) => new Map([...settings(task), ["In the function", functionTime(task)]]));
  const names = [...all[0].keys()];
  const same = names.filter((name) => all.every((each) => each.get(name) === all[0].get(name)));
  const own = names.filter((name) => !same.includes(name));
  const column = (task, index) =>
    el(
      "figure",
      {},
      el("img", { src: `/pictures/${task.picture}`, alt: `${title(task)}, ${own.map((name) => `${name} ${all[index].get(name)}`).join(", ")}` }),
      el("figcaption", {}, el("dl", {}, own.map((name) => el("div", {}, el("dt", {}, name), el("dd", {}, all[index].get(name)))))),
    );
  dialog.replaceChildren(
    heading(dialog, "compare-title", `${tasks.length} pictures`),
    el("p", { class: "soft" }, same.length ? `All: ${same.map((name) => `${name.toLowerCase()} ${all[0].get(name)}`).join(" · ")}` : "They have nothing in common."),
    el("div", { class: "columns" }, tasks.map(column)),
  );
  dialog.showModal();
}

function functionTime(task) {
  const ms = task.stages.reduce((sum, [, each]) => sum + each, 0);
  return `${(ms / 1000).toFixed(1)} s`;
}
