// The form for a task. It corrects nothing, so that the function's answer to a wrong value can be seen.

import { byId, el, setText } from "./dom.js";
import * as sketch from "./sketch.js";
import { post, store, watch } from "./store.js";
import * as weights from "./weights.js";
import { styleName } from "./words.js";

const IDEAS = [
  ["lighthouse", "lighthouse, sunset, sea"],
  ["mountains", "mountains, snow, lake, blue sky"],
  ["night", "night sky, crescent moon, stars"],
  ["city", "city skyline, night"],
  ["balloon", "red hot air balloon, blue sky, clouds"],
];
const FAILING = [
  ["Zero steps", (order) => ({ ...order, steps: 0 })],
  ["A LoRA that is not there", (order) => ({ ...order, style: "nobody" })],
  ["No tags", (order) => ({ ...order, tags: [] })],
  ["A sketch that is not there", (order) => ({ ...order, sketch: "none.png", strength: 1 })],
];
const SEEDS = 4;

const narrow = matchMedia("(max-width: 56rem)");
const form = byId("order");
const field = (name) => form.elements[name];
/** Whether the signature is still the one that came with the style. */
let signedByStyle = true;

export function start() {
  watch(offerStyles);
  watch(offerSchedulers);
  byId("ideas").append(...IDEAS.map(([name, tags]) => el("button", { type: "button", onclick: () => (field("tags").value = tags) }, name)));
  byId("failing").append(...FAILING.map(([name, change]) => el("button", { type: "button", onclick: () => publish((order) => [change(order)]) }, name)));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    publish((order) => [order]);
  });
  byId("seeds").addEventListener("click", () => publish(seeds));
  byId("every-style").addEventListener("click", () => publish((order) => store.styles.map(({ name, artist }) => ({ ...order, style: name, artist }))));
  field("artist").addEventListener("input", () => (signedByStyle = false));
  form.addEventListener("change", showSides);
}

const OWN = "own";

/** The fields of a size of one's own are there if they count. */
function showSides() {
  byId("sides").hidden = field("ratio").value !== OWN;
}

/** Fills the form with what a task had. */
export function fill({ task, style }) {
  sketch.fill({ task });
  weights.fill({ task });
  field("tags").value = (task.prompt_tags ?? []).join(", ");
  field("seed").value = task.seed ?? "";
  field("steps").value = task.num_inference_steps ?? "";
  field("artist").value = task.artist_name ?? "";
  signedByStyle = false;
  const own = task.width !== undefined || task.height !== undefined;
  field("width").value = task.width ?? field("width").value;
  field("height").value = task.height ?? field("height").value;
  field("scheduler").value = task.scheduler ?? "";
  field("lora-scale").value = task.lora_scale ?? "";
  field("clip-skip").value = task.clip_skip ?? "";
  field("long-prompt").checked = task.long_prompt === true;
  for (const [name, value] of [["ratio", own ? OWN : task.aspect_ratio], ["style", style]]) {
    if ([...form.elements[name]].some((radio) => radio.value === value)) field(name).value = value;
  }
  showSides();
}

/** The schedulers of the published contract. */
function offerSchedulers() {
  const select = field("scheduler");
  if (select.options.length > 1 || !store.schedulers.length) return;
  select.append(...store.schedulers.filter(Boolean).map((name) => el("option", { value: name }, name)));
}

let offered = "";

function offerStyles() {
  const names = store.styles.map(({ name }) => name).join();
  if (names === offered) return;
  offered = names;
  const chosen = store.styles.find(({ name }) => name === "stained-glass") ?? store.styles[0];
  byId("styles").replaceChildren(
    ...store.styles.map(({ name, artist }) => {
      const radio = el("input", { type: "radio", name: "style", value: name, checked: name === chosen.name, onchange: () => sign(artist) });
      return el("label", {}, radio, el("span", {}, el("b", {}, styleName(name)), el("small", {}, artist)));
    }),
  );
  sign(chosen.artist);
}

function sign(artist) {
  if (signedByStyle) field("artist").value = artist;
}

/** A number as a number, anything else as it stands. Nothing where there is nothing: the default holds. */
function number(text) {
  const trimmed = text.trim();
  if (trimmed === "") return undefined;
  return /^-?\d{1,15}(\.\d{1,6})?$/.test(trimmed) ? Number(trimmed) : trimmed;
}

function order() {
  return {
    style: field("style").value,
    tags: field("tags").value.split(",").map((tag) => tag.trim()).filter(Boolean),
    artist: field("artist").value,
    ...size(),
    seed: number(field("seed").value),
    steps: number(field("steps").value),
    scheduler: field("scheduler").value || undefined,
    ...sketch.order(),
    lora_scale: number(field("lora-scale").value),
    ...weights.order(),
    clip_skip: number(field("clip-skip").value),
    long_prompt: field("long-prompt").checked || undefined,
  };
}

function size() {
  if (field("ratio").value !== OWN) return { aspect_ratio: field("ratio").value };
  return { width: number(field("width").value), height: number(field("height").value) };
}

function seeds(first) {
  const seed = typeof first.seed === "number" ? first.seed : 42;
  return Array.from({ length: SEEDS }, (_, index) => ({ ...first, seed: seed + index }));
}

/** Publishes what is made of the form, once a sketch that is on its way has arrived. */
async function publish(make) {
  if (!(await sketch.settled())) return;
  try {
    const { ids } = await post("/api/tasks", { orders: make(order()) });
    setText(byId("order-error"), "");
    document.dispatchEvent(new CustomEvent("published", { detail: ids }));
    // On a narrow page they are below the form.
    if (narrow.matches && ids.length === 1) byId("tasks-title").scrollIntoView();
  } catch (error) {
    setText(byId("order-error"), `Not published: ${error.message}`);
  }
}
