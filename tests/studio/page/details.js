// One task: its picture, its history, and the metadata of the picture's file.

import { byId, el } from "./dom.js";
import { credential, metadata } from "./file.js";
import { fill } from "./form.js";
import { heading, list } from "./parts.js";
import { about, store } from "./store.js";
import { stages } from "./track.js";
import { ending, settings, time, title } from "./words.js";

const STATIONS = { broker: "RabbitMQ", relay: "Relay", queue: "SQS", function: "Function", storage: "S3", backend: "Backend" };

export async function showDetails(id) {
  const task = store.tasks.get(id);
  const dialog = byId("details");
  const file = el("div", { class: "file", "aria-live": "polite" });
  const again = el("button", { type: "button", onclick: () => useAgain(dialog, task) }, "Use these settings");
  const picture = task.picture && el("img", { src: `/pictures/${task.picture}`, alt: title(task) });
  const spent = stages(task);
  dialog.replaceChildren(
    heading(dialog, "details-title", title(task)),
    el(
      "div",
      { class: "sheet" },
      el("div", { class: "left" }, picture, el("p", { class: task.picture ? "soft" : "message" }, ending(task)), list(settings(task)), again),
      el(
        "div",
        { class: "right" },
        task.picture && file,
        el("section", {}, el("h3", {}, "Its way"), way(task), spent),
      ),
    ),
  );
  dialog.showModal();
  if (!task.picture) return;
  file.append(el("p", { class: "soft" }, "Reading the file …"));
  try {
    const said = await about(task.picture);
    file.replaceChildren(credential(said.credential), metadata(said.metadata));
  } catch (error) {
    file.replaceChildren(el("p", { class: "error" }, error.message));
  }
}

function useAgain(dialog, task) {
  fill(task);
  dialog.close();
  byId("paint").focus();
}

/** What was seen, with the milestones where they belong. */
function way(task) {
  const seen = task.marks.map(({ at_ms, station, what, good }) => ({ at_ms, where: STATIONS[station], what, good }));
  const told = task.progress.map(({ at_ms, percent, step }) => ({ at_ms, where: "Backend", what: `progress ${percent} %, step ${step}`, good: true }));
  const rows = [...seen, ...told].sort((a, b) => a.at_ms - b.at_ms);
  const row = ({ at_ms, where, what, good }) => el("li", { class: good ? "" : "held" }, el("small", {}, `+${time(at_ms)}`), el("b", {}, where), el("span", {}, what));
  const refused = task.refusals ? el("p", { class: "held" }, `Before SQS took it, it did not (${task.refusals}×).`) : null;
  return el("div", {}, el("ol", { class: "way" }, rows.map(row)), refused);
}
