// How strongly the blocks of the model take the style. There is one value, a text of JSON; the sliders show and change parts of it.

import { byId, el, setText } from "./dom.js";
import { weightsText } from "./words.js";

const PARTS = [
  ["down", "Down: the way in"],
  ["mid", "Mid: the turn"],
  ["up", "Up: the way out"],
];
const UNSET = 1;

const sliders = new Map();
const text = byId("weights");

export function start() {
  byId("weight-sliders").append(...PARTS.map(([part, name]) => slider(part, name)));
  text.addEventListener("input", show);
  show();
}

/** What a task gets: nothing where nothing is set. A text that is no JSON goes as it stands, for the function to refuse. */
export function order() {
  const trimmed = text.value.trim();
  if (!trimmed) return {};
  try {
    return { lora_weights: JSON.parse(trimmed) };
  } catch {
    return { lora_weights: trimmed };
  }
}

/** What a task had. */
export function fill({ task: { lora_weights: weights } }) {
  text.value = weights === undefined ? "" : JSON.stringify(weights);
  show();
}

function slider(part, name) {
  const [input, says] = [el("input", { type: "range", id: `weight-${part}`, min: 0, max: 2, step: 0.05, value: UNSET }), el("output", {})];
  input.addEventListener("input", () => set(part, Number(input.value)));
  sliders.set(part, { input, says });
  return el("div", { class: "field slider" }, el("label", { for: input.id }, name), input, says);
}

/** Changes one part and leaves the others as they are. 1 is what holds without a value. */
function set(part, value) {
  const { lora_weights: now } = order();
  const weights = isObject(now) ? now : {};
  const before = (each) => (isObject(weights.unet) ? weights.unet[each] : weights.unet);
  const all = PARTS.map(([each]) => [each, each === part ? value : before(each)]);
  const unet = all.filter(([, each]) => each !== undefined && each !== UNSET);
  weights.unet = unet.length ? Object.fromEntries(unet) : undefined;
  const isEmpty = Object.values(weights).every((each) => each === undefined);
  text.value = isEmpty ? "" : JSON.stringify(weights);
  show();
}

function show() {
  const { lora_weights: now } = order();
  const unet = isObject(now) ? now.unet : undefined;
  for (const [part, { input, says }] of sliders) {
    const value = isObject(unet) ? unet[part] : unet;
    const isNumber = typeof value === "number";
    input.value = isNumber ? value : UNSET;
    // A block of its own has several numbers.
    setText(says, isNumber ? String(value) : value === undefined || value === null ? String(UNSET) : "…");
  }
  setText(byId("weights-says"), now === undefined ? "" : weightsText(now));
}

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
