// The wish to cancel tasks, and what became of it.

import { announce, el, setText } from "./dom.js";
import { post } from "./store.js";
import { title } from "./words.js";

/** A button that cancels one task; `says` gets what went wrong. */
export function cancelButton(task, says) {
  const cancel = async () => {
    // Disabled it would lose the focus.
    if (button.getAttribute("aria-disabled") === "true") return;
    await cancelAll([task], says);
  };
  const button = el("button", { type: "button", class: "cancel", "aria-label": `Cancel task ${task.id}, ${title(task)}`, onclick: cancel }, "Cancel");
  return {
    node: button,
    update(now) {
      const asked = now.cancel_ms !== null;
      setText(button, asked ? "Cancelling …" : "Cancel");
      button.setAttribute("aria-disabled", String(asked));
    },
  };
}

export async function cancelAll(tasks, says) {
  try {
    await Promise.all(tasks.map(({ id }) => post("/api/cancel", { id })));
    setText(says, "");
    announce(tasks.length === 1 ? `${title(tasks[0])}: to be cancelled` : `${tasks.length} tasks: to be cancelled`);
  } catch (error) {
    setText(says, `Not cancelled: ${error.message}`);
  }
}

/** What a task that is to be cancelled waits for. */
export function waitsFor(task) {
  if (task.cancel_ms === null || task.end) return "";
  if (!task.marks.some(({ what, station }) => station === "cancel" && what.startsWith("S3"))) return "to be cancelled; the relay makes a marker in S3";
  if (task.progress.length) return "to be cancelled at the next mark of progress, where the function looks for the marker";
  return "cancelled by a marker in S3; it ends when the function gets it";
}
