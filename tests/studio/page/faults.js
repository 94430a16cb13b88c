// The fault switches with their counts, and the ledger, which shows whether anything was lost.

import { byId, el, setText } from "./dom.js";
import { post, store, watch } from "./store.js";

const COUNTS = [
  ["published", "published"],
  ["complete", "complete"],
  ["failed", "failed"],
  ["cancelled", "cancelled"],
  ["in_flight", "in flight"],
  ["repeats", "told again"],
];

export function start() {
  const updates = [killing(), dropping(), throttling(), ledger()];
  watch(() => {
    if (store.status) updates.forEach((update) => update(store.status));
  });
}

function killing() {
  const says = el("small", {});
  const button = el("button", { id: "kill", type: "button", onclick: () => inject("kill-function") }, "Kill the function");
  byId("faults").append(el("div", { class: "fault" }, button, says));
  return ({ faults }) => {
    const times = faults.kills ? `, killed ${faults.kills}×` : "";
    setText(says, (faults.function_ready ? "at work" : "starting") + times);
    // Disabled it would lose the focus.
    button.setAttribute("aria-disabled", String(!faults.function_ready));
  };
}

const dropping = () =>
  toggle("drop-webhooks", "Drop webhooks", ({ faults }) => [faults.drops_webhooks, `the backend answers 503: ${faults.webhooks_dropped} so far`]);

const throttling = () =>
  toggle("throttle-queue", "Throttle SQS", ({ faults }) => [faults.throttles_queue, `SQS takes nothing: ${faults.sends_refused} refused so far`]);

function toggle(fault, name, read) {
  const says = el("small", { id: `${fault}-says` });
  const box = el("input", { id: fault, type: "checkbox", role: "switch", "aria-describedby": says.id, onchange: () => inject(fault, box.checked) });
  byId("faults").append(el("div", { class: "fault" }, el("label", { class: "switch" }, box, name), says));
  return (status) => {
    const [on, text] = read(status);
    box.checked = on;
    setText(says, text);
  };
}

function inject(fault, on = true) {
  post("/api/faults", { fault, on }).catch((error) => setText(byId("connection"), error.message));
}

function ledger() {
  const cells = COUNTS.map(([key, name]) => ({ key, value: el("dd", { "data-count": key }, "0"), name: el("dt", {}, name) }));
  const verdict = el("p", { id: "verdict" });
  byId("ledger").append(el("dl", {}, cells.map(({ name, value }) => el("div", {}, name, value))), verdict);
  return ({ ledger, faults }) => {
    for (const { key, value } of cells) setText(value, String(key === "failed" ? ledger.failed + ledger.dead_lettered : ledger[key]));
    const trouble = faults.trouble || (ledger.contradictions ? `${ledger.contradictions} told of two different ends` : "");
    verdict.dataset.state = trouble ? "bad" : ledger.in_flight ? "open" : ledger.published ? "good" : "none";
    setText(verdict, trouble || judge(ledger));
  };
}

function judge({ published, in_flight: open, dead_lettered: dead }) {
  if (!published) return "Nothing published in this run.";
  if (open) return `${open} of ${published} not ended yet.`;
  const end = dead ? `, ${dead} in the dead-letter queue` : "";
  return published === 1 ? `The task ended exactly once${end}.` : `All ${published} ended exactly once${end}.`;
}
