// One task: its picture, its history, and the metadata of the picture's file.

import { chart } from "./chart.js";
import { byId, el } from "./dom.js";
import { credential, metadata } from "./file.js";
import { fill } from "./form.js";
import { heading, list } from "./parts.js";
import { begun, strip } from "./preview.js";
import { about, store } from "./store.js";
import { ending, settings, time, title } from "./words.js";

const STATIONS = { broker: "RabbitMQ", relay: "Relay", queue: "SQS", function: "Function", storage: "S3", backend: "Backend", cancel: "Cancel" };

export async function showDetails(id) {
  const task = store.tasks.get(id);
  const dialog = byId("details");
  const file = el("div", { class: "file", "aria-live": "polite" });
  const again = el("button", { type: "button", onclick: () => useAgain(dialog, task) }, "Use these settings");
  const picture = task.picture && el("img", { src: `/pictures/${task.picture}`, alt: title(task) });
  dialog.replaceChildren(
    heading(dialog, "details-title", title(task)),
    el(
      "div",
      { class: "sheet" },
      el("div", { class: "left" }, picture, el("p", { class: task.picture ? "soft" : "message" }, ending(task)), begun(task), list(settings(task)), again, told(task), strip(task)),
      el(
        "div",
        { class: "right" },
        task.picture && file,
        el("section", {}, el("h3", {}, "Its way"), way(task)),
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

/** What `complete` told beside the address, and how the address is protected. */
function told({ metadata, address, stages }) {
  if (!metadata?.scheduler) return null;
  const lora = ({ name, scale, hash }) => `${name}, strength ${scale}${hash ? `, SHA-256 ${hash.slice(0, 12)}…` : ""}`;
  const pairs = [
    ["Model", metadata.model ?? "not told again"],
    ["Scheduler", metadata.scheduler],
    ["Guidance", String(metadata.guidance_scale)],
    ...metadata.loras.map((each) => ["LoRA", lora(each)]),
    ["Warnings", metadata.warnings.map(({ message }) => message).join("; ") || "none"],
  ];
  if (address) pairs.push(["Address", privacy(address)]);
  const log = stages.map(([name, ms]) => `${name} ${time(ms)}`).join(", ");
  const logged = log && el("details", {}, el("summary", {}, "Every stage, from the function\u2019s log"), el("p", { class: "soft" }, log));
  return el("section", { class: "told" }, el("h3", {}, "What complete told"), list(pairs), chart({ metadata }), logged);
}

function privacy({ expires_s: seconds, unsigned_status: status }) {
  if (seconds === null) return `not signed; S3 answers ${status}`;
  return `signed for ${time(seconds * 1000)}; without the signature S3 answers ${status}`;
}
