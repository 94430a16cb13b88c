// Makes elements. Text is always inserted as text, never as markup.

/** An element with properties (`class`, `data-…` and `aria-…` as attributes, `on…` as listeners) and children. */
export function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name in node && !name.includes("-")) node[name] = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** An SVG element with attributes and children. */
export function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children.flat());
  return node;
}

export const byId = (id) => document.getElementById(id);

/** Sets a text only if it differs, so that screen readers announce only changes. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Has a list show these keys in this order, and leaves alone the nodes that stay: the focus stays with them. */
export function keep(list, nodes) {
  const wanted = new Set(nodes);
  for (const child of [...list.children]) if (!wanted.has(child)) child.remove();
  nodes.forEach((node, index) => {
    if (list.children[index] !== node) list.insertBefore(node, list.children[index] ?? null);
  });
}

const announcer = byId("announcer");

/** Tells a screen reader. */
export function announce(text) {
  announcer.textContent = text;
}
