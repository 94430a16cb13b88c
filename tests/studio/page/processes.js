// The queues and the processes: how much waits where, and who is doing what. All of it is what the parts say of themselves.

import { byId, el, setText } from "./dom.js";
import { store, watch } from "./store.js";

export function start() {
  const tiles = ["RabbitMQ", "Relay", "SQS", "Function"].map((name) => {
    const [value, unit, says] = [el("b", {}, "…"), el("span", {}), el("p", { class: "soft" })];
    const key = name.toLowerCase();
    const node = el("li", { "data-part": key, "data-state": "unknown" }, el("h3", {}, name), el("p", { class: "value" }, value, " ", unit), says);
    return { key, node, value, unit, says };
  });
  byId("parts").append(...tiles.map(({ node }) => node));
  watch(() => {
    if (!store.parts) return;
    const told = { rabbitmq: broker(store.parts), relay: relay(store.parts), sqs: sqs(store.parts), function: worker(store.parts) };
    for (const { key, node, value, unit, says } of tiles) {
      const { state, number, word, text } = told[key];
      node.dataset.state = state;
      setText(value, String(number));
      setText(unit, word);
      setText(says, text);
    }
  });
  watch(settings);
}

const missing = { state: "bad", number: "?", word: "", text: "does not answer" };

function broker({ queues }) {
  if (queues.broker === null) return missing;
  return { state: queues.broker ? "busy" : "good", number: queues.broker, word: "ready", text: `cancels: ${queues.cancels ?? "?"}` };
}

function relay({ relay: { status, says, sent, markers }, queues }) {
  if (status === null) return missing;
  const sides = [["RabbitMQ", says.broker], ["SQS", says.sqs], ["cancels", says.cancels?.broker], ["S3", says.cancels?.s3]];
  const lost = sides.filter(([, ready]) => ready === false).map(([name]) => name);
  const text = lost.length ? `not ready: ${lost.join(", ")}` : `${says.ready ? "ready" : "not ready"}; sent ${sent ?? "?"}, markers ${markers ?? "?"}`;
  return { state: says.ready ? (queues.relay ? "busy" : "good") : "bad", number: queues.relay ?? "?", word: "in its hands", text };
}

function sqs({ queues }) {
  if (queues.waiting === null) return missing;
  const state = queues.dead ? "bad" : queues.waiting ? "busy" : "good";
  return { state, number: queues.waiting, word: "waiting", text: `${queues.in_flight} in flight, ${queues.dead ?? "?"} dead` };
}

function worker({ function: { pid, tasks, answered, memory_mib: memory } }) {
  if (pid === null) return { state: "held", number: "starting", word: "", text: "the model is being loaded" };
  const about = `pid ${pid}, ${memory ?? "?"} MiB, ${answered} answered`;
  if (!tasks.length) return { state: "good", number: "idle", word: "", text: about };
  return { state: "busy", number: "working", word: tasks.map((id) => `#${id}`).join(", "), text: about };
}

let listed = false;

/** What the stack is set to, and why. */
function settings() {
  if (listed || !store.settings.function.length) return;
  listed = true;
  for (const program of ["function", "relay"]) {
    const rows = store.settings[program].map(({ name, value, why }) => el("div", {}, el("dt", {}, el("code", {}, `${name}=${value}`)), el("dd", {}, why)));
    byId("settings").append(el("h3", {}, program === "function" ? "Function" : "Relay"), el("dl", {}, rows));
  }
}
