// Starts the parts of the page.

import { byId, setText } from "./dom.js";
import * as faults from "./faults.js";
import * as form from "./form.js";
import * as gallery from "./gallery.js";
import * as histogram from "./histogram.js";
import * as processes from "./processes.js";
import * as series from "./series.js";
import * as sketch from "./sketch.js";
import { connect, store, watch } from "./store.js";
import * as tasks from "./tasks.js";
import * as weights from "./weights.js";
import * as welcome from "./welcome.js";

for (const part of [welcome, form, sketch, weights, faults, processes, series, tasks, histogram, gallery]) part.start();
watch(() => {
  const connection = byId("connection");
  connection.dataset.live = document.body.dataset.live = String(store.live);
  setText(connection, store.live ? "Live" : "Not connected");
  const since = store.heard ? ` What you see is as of ${store.heard.toLocaleTimeString("en-GB")}.` : "";
  const gone = byId("gone");
  gone.hidden = store.live;
  setText(gone, store.live ? "" : `The stack does not answer. Trying again …${since}`);
});
connect();
