// The state that the server has sent: tasks, styles, faults and ledger.

export const store = { tasks: new Map(), styles: [], status: null, live: false };

const watchers = [];

/** Calls `watcher` after each change, with the task and what it was before, if it was one task. */
export function watch(watcher) {
  watchers.push(watcher);
}

function tell(task, before) {
  for (const watcher of watchers) watcher(task, before);
}

export function connect() {
  const source = new EventSource("/api/events");
  source.addEventListener("all", (event) => {
    const { tasks, styles, status } = JSON.parse(event.data);
    Object.assign(store, { tasks: new Map(tasks.map((task) => [task.id, task])), styles, status, live: true });
    tell();
  });
  source.addEventListener("task", (event) => {
    const task = JSON.parse(event.data);
    const before = store.tasks.get(task.id);
    store.tasks.set(task.id, task);
    tell(task, before);
  });
  source.addEventListener("status", (event) => {
    store.status = JSON.parse(event.data);
    tell();
  });
  source.addEventListener("error", () => {
    // The browser tries again by itself.
    store.live = false;
    tell();
  });
}

/** Sends what a person wants; gives the answer, or throws with the server's words. */
export async function post(path, body) {
  const answer = await fetch(path, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
  });
  const text = await answer.text();
  if (!answer.ok) throw new Error(text.trim() || `the server answered ${answer.status}`);
  return text ? JSON.parse(text) : null;
}

/** What a picture's file says of itself. */
export async function about(picture) {
  const answer = await fetch(`/api/pictures/${picture}`);
  if (!answer.ok) throw new Error((await answer.text()).trim());
  return answer.json();
}
