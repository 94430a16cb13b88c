// A picture to begin from: chosen, dropped or pasted. The studio's server keeps it, and puts it into S3 for the tasks that name it.

import { announce, byId, setText } from "./dom.js";
import { store, upload } from "./store.js";
import { sketchOf } from "./words.js";

const MIB = 1 << 20;
const HOW = "drop or paste one";

/** Its name on the server; none without one. */
let name = null;
/** The last upload; what it brings counts only if it is still the last. */
let upLast = null;

export function start() {
  const file = byId("sketch-file");
  file.addEventListener("change", async () => {
    const isFocused = document.activeElement === file;
    await take(file.files);
    // The same file can be chosen again, after it was changed or taken away.
    file.value = "";
    if (name && isFocused) byId("strength").focus();
  });
  byId("sketch-away").addEventListener("click", () => {
    upLast = null;
    show(null);
    announce("The sketch is taken away");
    file.focus();
  });
  byId("strength").addEventListener("input", showStrength);
  document.addEventListener("paste", (event) => {
    if (!event.clipboardData.files.length) return;
    event.preventDefault();
    take(event.clipboardData.files);
  });
  const over = (is) => byId("sketch").classList.toggle("over", is);
  const hasFile = (event) => event.dataTransfer.types.includes("Files");
  document.addEventListener("dragover", (event) => {
    if (!hasFile(event)) return;
    // Without this the browser would leave the page and open the file.
    event.preventDefault();
    over(true);
  });
  document.addEventListener("dragleave", (event) => event.relatedTarget || over(false));
  document.addEventListener("drop", (event) => {
    over(false);
    if (!hasFile(event)) return;
    event.preventDefault();
    take(event.dataTransfer.files);
  });
}

/** Waits for an upload that is on its way, or for the one that has followed it meanwhile; says whether it went well. */
export async function settled() {
  while (upLast) if (!(await upLast)) return false;
  return true;
}

/** What a task gets of it. */
export const order = () => (name ? { sketch: name, strength: Number(byId("strength").value) } : {});

/** What a task had. */
export function fill(task) {
  byId("strength").value = task.task.strength ?? byId("strength").defaultValue;
  upLast = null;
  show(sketchOf(task)?.file ?? null);
}

async function take(files) {
  const upThis = send(files);
  upLast = upThis;
  const sent = await upThis;
  if (upLast !== upThis) return;
  upLast = null;
  if (!sent) return setText(byId("sketch-says"), HOW);
  show(sent);
  announce("The sketch is there");
}

/** Sends a file; gives its name there, or says why it was not taken. */
async function send(files) {
  const [file] = files;
  try {
    if (files.length !== 1) throw new Error("one picture at a time");
    const most = store.sketches.max_bytes;
    if (file.size > most) throw new Error(`the sketch has ${(file.size / MIB).toFixed(1)} MiB, the limit is ${most / MIB} MiB: save it smaller`);
    setText(byId("sketch-error"), "");
    setText(byId("sketch-says"), "is sent …");
    return await upload(file);
  } catch (error) {
    setText(byId("sketch-error"), `Not taken: ${error.message}`);
    return null;
  }
}

function show(now) {
  name = now;
  byId("sketch-choose").hidden = Boolean(now);
  byId("sketch-chosen").hidden = !now;
  setText(byId("sketch-says"), HOW);
  setText(byId("sketch-error"), "");
  const preview = byId("sketch-preview");
  if (now) preview.src = `/sketches/${now}`;
  else preview.removeAttribute("src");
  showStrength();
}

const showStrength = () => setText(byId("strength-says"), byId("strength").value);
