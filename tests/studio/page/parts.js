// Parts of dialogs.

import { el } from "./dom.js";

/** The first line of a dialog, with the button that closes it. */
export function heading(dialog, id, text) {
  const close = el("button", { type: "button", class: "quiet", onclick: () => dialog.close() }, "Close");
  return el("div", { class: "bar" }, el("h2", { id }, text), close);
}

/** Pairs of a name and what it is. */
export function list(pairs) {
  return el("dl", { class: "pairs" }, pairs.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
}
