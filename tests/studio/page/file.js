// Content Credentials and metadata of a picture's file.

import { el } from "./dom.js";
import { list } from "./parts.js";

const CREATED = "c2pa.actions.v2";
const OWN = "org.easel.generation";

/** The credential as an independent reader found it. */
export function credential({ state, said, reason }) {
  const section = el("section", { class: "credential", "data-state": state }, el("h3", {}, "Content Credentials"));
  if (state === "none") {
    section.append(el("p", {}, "Not signed: this file has no credential."));
  } else if (state === "bad") {
    section.append(el("p", { class: "error" }, `Not to be trusted: ${reason}`));
  } else {
    const action = said.assertions[CREATED]?.actions[0] ?? {};
    section.append(
      el("p", { class: "seal" }, "Signed, and unchanged since"),
      list([
        ["Signer", said.signer],
        ["Algorithm", said.algorithm],
        ["Made by", said.claim.claim_generator_info?.name ?? "?"],
        ["Title", said.claim["dc:title"] ?? "?"],
        ["Action", action.action ?? "?"],
        ["Source", String(action.digitalSourceType ?? "?").split("/").at(-1)],
        ...Object.entries(said.assertions[OWN] ?? {}).filter(([name]) => !name.startsWith("@")).map(([name, value]) => [name, text(value)]),
      ]),
      el("details", {}, el("summary", {}, "The whole manifest"), el("pre", { tabindex: "0" }, JSON.stringify(said, null, 2))),
    );
  }
  return section;
}

export function metadata(tags) {
  const names = Object.keys(tags);
  const rows = names.map((name) => el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, text(tags[name]))));
  return el(
    "section",
    {},
    el("h3", {}, "Metadata"),
    el("details", { open: true }, el("summary", {}, `${names.length} tags, read by exiftool`), el("div", { class: "scroll", tabindex: "0" }, el("table", {}, el("tbody", {}, rows)))),
  );
}

function text(value) {
  return typeof value === "object" && value !== null ? JSON.stringify(value) : String(value);
}
