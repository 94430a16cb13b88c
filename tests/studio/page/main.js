// Starts the parts of the page.

import { byId, setText } from "./dom.js";
import * as faults from "./faults.js";
import * as form from "./form.js";
import * as gallery from "./gallery.js";
import { connect, store, watch } from "./store.js";
import * as tasks from "./tasks.js";

for (const part of [form, faults, tasks, gallery]) part.start();
watch(() => {
  const connection = byId("connection");
  connection.dataset.live = String(store.live);
  setText(connection, store.live ? "Live" : "The stack does not answer. Trying again …");
});
connect();
