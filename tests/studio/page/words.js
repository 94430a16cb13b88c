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

/** What tells one task from another, as pairs. */
export function settings(task) {
  const { artist_name, seed, num_inference_steps, aspect_ratio } = task.task;
  const shown = (value) => (value === undefined ? "default" : String(value));
  return [
    ["Style", styleName(task.style)],
    ["Seed", shown(seed)],
    ["Steps", shown(num_inference_steps)],
    ["Tags", title(task)],
    ["Aspect ratio", shown(aspect_ratio)],
    ["Artist", shown(artist_name)],
  ];
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
    case "dead-lettered":
      return "Nobody could be told: the message lies in the dead-letter queue";
    default:
      return "";
  }
}

/** Groups of the stages that the function logs. */
const GROUPS = [
  ["wait", ["claim", "fetch", "wait"]],
  ["LoRA", ["lora"]],
  ["denoise", ["denoise"]],
  ["decode", ["decode", "safety"]],
  ["sign", ["sign", "encode", "metadata", "credential"]],
  ["upload", ["upload"]],
  ["tell", ["complete"]],
];

export function stageGroups(task) {
  const stages = new Map(task.stages);
  return GROUPS.map(([name, parts]) => [name, parts.reduce((sum, part) => sum + (stages.get(part) ?? 0), 0)]);
}
