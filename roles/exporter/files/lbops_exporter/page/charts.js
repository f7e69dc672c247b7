// Copyright: (c) 2026, The lbops.xdp authors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later
// Lines over the last five minutes, and cells whose colour says how busy they are.

import { element } from "./elements.js";
import { quantity } from "./text.js";

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 150;
const HEIGHT = 40;

function drawn(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

export class Chart {
  #lines;

  /** `classes` of the lines, one for each series. */
  constructor(classes, label) {
    this.element = drawn("svg", {
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
      preserveAspectRatio: "none",
      class: "chart",
      role: "img",
      "aria-label": label,
    });
    this.#lines = classes.map((name) => drawn("polyline", { class: name, points: "" }));
    this.element.append(...this.#lines);
  }

  draw(history) {
    const most = Math.max(1, ...history.series.flat());
    history.series.forEach((values, place) => {
      const start = WIDTH - values.length;
      const points = values.map((value, at) => `${start + at},${(HEIGHT - 1 - ((HEIGHT - 2) * value) / most).toFixed(1)}`);
      this.#lines[place].setAttribute("points", points.join(" "));
    });
  }
}

/** One cell for each of what is counted, as hot as its share of the busiest. */
export class Strip {
  #cells = new Map();
  #row = element("div", { className: "cells" });

  constructor(label) {
    this.element = element("div", { className: "strip" }, element("h4", {}, label), this.#row);
  }

  /** Rates by name. */
  draw(rates) {
    const most = Math.max(1, ...Object.values(rates).map((rate) => rate ?? 0));
    const names = Object.keys(rates).sort((one, other) => Number(one) - Number(other));
    if (names.join() !== [...this.#cells.keys()].join()) {
      this.#cells = new Map(names.map((name) => [name, element("span", { className: "cell" })]));
      this.#row.replaceChildren(...this.#cells.values());
    }
    for (const [name, cell] of this.#cells) {
      cell.style.setProperty("--heat", (rates[name] ?? 0) / most);
      cell.replaceChildren(element("b", {}, name), ` ${quantity(rates[name])}`);
      cell.title = `${name}: ${quantity(rates[name])} packets/s`;
    }
    this.element.hidden = !names.length;
  }
}
