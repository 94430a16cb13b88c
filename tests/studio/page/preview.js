// The painting as it is now: the last preview that came with progress, then the picture.

import { el } from "./dom.js";
import { sketchOf, title, weightsText } from "./words.js";

export function image(task) {
  const node = el("img", { alt: "", hidden: true });
  return {
    node,
    update(now) {
      const last = now.progress.findLast(({ preview }) => preview !== null && preview !== undefined);
      const source = now.picture ? `/pictures/${now.picture}` : last && !isOver(now) ? `/previews/${now.id}/${last.preview}` : "";
      node.hidden = !source;
      if (source && node.getAttribute("src") !== source) node.src = source;
      node.alt = now.picture ? title(now) : last ? `Preview at ${last.percent} %` : "";
      node.dataset.kind = now.picture ? "picture" : source ? "preview" : "none";
    },
  };
}

/** A task that ended without a picture shows none. */
const isOver = (task) => task.end && task.end.kind !== "complete";

/** What a task begins from, and the weights of its blocks, if it has either. */
export function begun(task) {
  const [sketch, weights] = [sketchOf(task), task.task.lora_weights];
  const thumbnail = sketch?.file && el("img", { src: `/sketches/${sketch.file}`, alt: "The sketch", loading: "lazy" });
  const from = sketch && `from a sketch, strength ${task.task.strength ?? "default"}`;
  const words = [from, weights !== undefined && `weights ${weightsText(weights)}`].filter(Boolean);
  return words.length ? el("div", { class: "begun soft" }, thumbnail, el("span", {}, words.join(" \u00b7 "))) : null;
}

/** All previews of a task, if it was painted in this run. */
export function strip(task) {
  const all = task.progress.filter(({ preview }) => preview !== null && preview !== undefined);
  if (!all.length) return null;
  const item = ({ preview, percent }) => el("li", {}, el("img", { src: `/previews/${task.id}/${preview}`, alt: "" }), el("small", {}, `${percent} %`));
  return el("section", {}, el("h3", {}, "How it came about"), el("ol", { class: "strip" }, all.map(item)));
}
