// Copyright: (c) 2026, The lbops.xdp authors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later
// Making elements. Text is always text: names from the inventory are never taken for markup.

export function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key in made) made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

/** The children, in this order; those that stay where they are are not touched, and keep focus and scroll. */
export function replaced(parent, children) {
  children.forEach((child, place) => {
    if (parent.children[place] !== child) parent.insertBefore(child, parent.children[place] ?? null);
  });
  while (parent.children.length > children.length) parent.lastElementChild.remove();
}

export function table(className, headings) {
  const body = element("tbody");
  const head = element("tr", {}, ...headings.map((heading) => element("th", { scope: "col" }, heading)));
  return [element("div", { className: "scroll" }, element("table", { className }, element("thead", {}, head), body)), body];
}
