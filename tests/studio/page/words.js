// Texts for values.

export function time(ms) {
  if (ms < 1000) return `${ms} ms`;
  return ms < 60000 ? `${(ms / 1000).toFixed(ms < 10000 ? 2 : 1)} s` : `${Math.floor(ms / 60000)} min ${Math.round((ms % 60000) / 1000)} s`;
}

export function title(task) {
  const tags = task.task.prompt_tags;
  return Array.isArray(tags) && tags.length ? tags.join(", ") : "no tags";
}

export function styleName(name) {
  const words = name.replace(/-kohya$/, " · kohya").replaceAll("-", " ");
  return words.charAt(0).toUpperCase() + words.slice(1);
}

/** The sketch that a task begins from: where its picture is, if the server has it, and a few words. */
export function sketchOf({ task: { image_url: url, strength } }) {
  if (url === undefined) return null;
  const key = String(url).split("/").at(-1);
  const isKept = /^[0-9a-f]{32}\.(png|jpg|webp)$/.test(key);
  const label = isKept ? key.slice(0, 6) : key;
  return { file: isKept ? key : null, text: strength === undefined ? label : `${label}, strength ${strength}` };
}

/** Weights by block in a few words: `down 0.5, up block_1 [1,0]`. */
export function weightsText(weights) {
  const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
  const parts = (value, path) => (isObject(value) ? Object.entries(value).flatMap(([name, each]) => parts(each, [...path, name])) : [[...path, JSON.stringify(value)].join(" ")]);
  return parts(weights, []).map((part) => part.replace(/^unet (?=[a-z])/, "").replace("_encoder", " encoder")).join(", ") || "none";
}

/** What tells one task from another, as pairs. */
export function settings(task) {
  const { artist_name, seed, num_inference_steps, scheduler, lora_scale, lora_weights, clip_skip, long_prompt } = task.task;
  const shown = (value) => (value === undefined ? "default" : String(value));
  const more = [
    ["Sketch", sketchOf(task)?.text],
    ["Scheduler", scheduler],
    ["Style\u2019s strength", lora_scale],
    ["Weights by block", lora_weights === undefined ? undefined : weightsText(lora_weights)],
    ["Clip skip", clip_skip],
    ["Long prompt", long_prompt && "yes"],
  ];
  return [
    ["Style", styleName(task.style)],
    ["Seed", shown(seed)],
    ["Steps", shown(num_inference_steps)],
    ["Tags", title(task)],
    ["Size", size(task)],
    ...more.filter(([, value]) => value !== undefined).map(([name, value]) => [name, String(value)]),
    ["Artist", shown(artist_name)],
  ];
}

const RATIOS = { "1:1": [512, 512], "2:2": [768, 768], "1:2": [512, 1024] };

/** Width and height: as `complete` told them, else as the task asks for them. */
export function sides({ metadata, task: { width, height, aspect_ratio } }) {
  if (metadata?.width) return [metadata.width, metadata.height];
  const isGiven = Number.isInteger(width) && Number.isInteger(height) && width > 0 && height > 0;
  return isGiven ? [width, height] : (RATIOS[aspect_ratio] ?? RATIOS["1:1"]);
}

/** A size that nobody can paint is shown as it stands. */
function size(task) {
  const { width, height } = task.task;
  const isAsked = width !== undefined || height !== undefined;
  return (isAsked ? [width, height] : sides(task)).join("\u00d7");
}

export function summary(task) {
  const [[, style], [, seed], [, steps]] = settings(task);
  return `${style} · seed ${seed} · ${steps} steps`;
}

/** How a task ended, in one line. */
export function ending(task) {
  switch (task.end?.kind) {
    case "complete":
      return `Complete after ${time(task.ended_ms)}${task.nsfw ? "; flagged by the safety checker" : ""}`;
    case "failed":
      return `${task.end.code}: ${task.end.message}`;
    case "cancelled":
      return `Cancelled after ${time(task.ended_ms)}, ${task.progress.length ? `at ${task.progress.at(-1).percent} %` : "before it was painted"}`;
    case "dead-lettered":
      return "Nobody could be told: the message lies in the dead-letter queue";
    default:
      return "";
  }
}

/** Where a task is, in a few words. */
export function stateOf(task) {
  if (task.end?.kind === "complete") return time(task.ended_ms);
  if (task.end) return ending(task);
  if (task.cancel_ms !== null) return "to be cancelled";
  return task.progress.length ? `${task.progress.at(-1).percent} %` : "waits";
}
