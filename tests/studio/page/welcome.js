// What the page is, for a person who is here for the first time.

import { byId } from "./dom.js";

const KEY = "easel-studio-welcome";

export function start() {
  const [section, again] = [byId("welcome"), byId("about")];
  const show = (shown) => {
    section.hidden = !shown;
    again.setAttribute("aria-expanded", String(shown));
  };
  show(!isRead());
  byId("welcome-done").addEventListener("click", () => {
    keepRead();
    show(false);
    again.focus();
  });
  again.addEventListener("click", () => {
    show(section.hidden);
    if (!section.hidden) byId("welcome-title").focus();
  });
}

// A browser may forbid storage. Then each visit is the first.
function isRead() {
  try {
    return localStorage.getItem(KEY) !== null;
  } catch {
    return false;
  }
}

function keepRead() {
  try {
    localStorage.setItem(KEY, "read");
  } catch {}
}
