// The state that the server has sent: tasks, styles, faults, ledger, and what the parts say.

export const store = {
  tasks: new Map(),
  styles: [],
  schedulers: [],
  settings: { relay: [], function: [] },
  /** What the server takes of a picture to begin from. */
  sketches: { max_bytes: 0 },
  status: null,
  parts: null,
  /** The first id of this run. */
  first: 0,
  live: false,
  /** When something last came from the server. */
  heard: null,
};

/** The server says something each second. After so long without a word it is gone, whatever the connection looks like. */
const SILENCE_MS = 10_000;
/** How long an answer may take. */
const ANSWER_MS = 60_000;
const watchers = [];

/** Calls `watcher` after each change, with the task and what it was before, if it was one task. */
export function watch(watcher) {
  watchers.push(watcher);
}

function tell(task, before) {
  for (const watcher of watchers) watcher(task, before);
}

export function connect() {
  let source = open();
  setInterval(() => {
    if (Date.now() - lastSign < SILENCE_MS) return;
    source.close();
    lose();
    source = open();
  }, 1000);
}

/** When the server last said something, or was last asked. */
let lastSign = 0;

function lose() {
  store.live = false;
  tell();
}

function open() {
  lastSign = Date.now();
  const source = new EventSource("/api/events");
  const on = (name, note) =>
    source.addEventListener(name, (event) => {
      store.heard = new Date();
      lastSign = Date.now();
      note(JSON.parse(event.data));
    });
  on("all", ({ tasks, ...rest }) => {
    Object.assign(store, { ...rest, tasks: new Map(tasks.map((task) => [task.id, task])), live: true });
    tell();
  });
  on("task", (task) => {
    const before = store.tasks.get(task.id);
    store.tasks.set(task.id, task);
    tell(task, before);
  });
  for (const name of ["status", "parts"]) {
    on(name, (said) => {
      store[name] = said;
      tell();
    });
  }
  // The browser tries again by itself; where it does not, the silence is noticed.
  source.addEventListener("error", lose);
  return source;
}

/** Sends what a person wants; gives the answer, or throws with the server's words. */
export async function post(path, body) {
  const answer = await ask(path, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
  });
  const text = await answer.text();
  return text ? JSON.parse(text) : null;
}

/** Sends a picture to begin from; gives its name there, or throws with the server's words. */
export async function upload(file) {
  const answer = await ask("/api/sketches", { method: "POST", headers: { "content-type": "application/octet-stream" }, body: file });
  return (await answer.json()).name;
}

/** What a picture's file says of itself. */
export async function about(picture) {
  return (await ask(`/api/pictures/${picture}`)).json();
}

async function ask(path, options) {
  const answer = await fetch(path, { ...options, signal: AbortSignal.timeout(ANSWER_MS) }).catch(() => {
    throw new Error("the studio\u2019s server does not answer");
  });
  if (!answer.ok) throw new Error((await answer.text()).trim() || `the server answered ${answer.status}`);
  return answer;
}
