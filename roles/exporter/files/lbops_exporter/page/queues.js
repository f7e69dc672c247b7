// Copyright: (c) 2026, The lbops.xdp authors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later
// Which queue and which CPU has the work.

import { Strip } from "./charts.js";
import { element, replaced } from "./elements.js";
import { Rates } from "./rates.js";

/** Of one interface. */
export class Queues {
  #rates = { receive: new Rates(), transmit: new Rates() };
  #strips;

  constructor(name = "") {
    const of = name && ` of ${name}`;
    this.#strips = {
      receive: new Strip(`Packets/s by receive queue${of}`),
      transmit: new Strip(`Packets/s by transmit queue${of}`),
    };
    this.element = element("div", {}, ...Object.values(this.#strips).map((strip) => strip.element));
  }

  /** Packets by queue, of both directions. */
  update(time, packets) {
    for (const [direction, strip] of Object.entries(this.#strips))
      strip.draw(this.#rates[direction].update(time, packets?.[direction] ?? {}));
  }
}

export class Cpus {
  #rates = new Rates();
  #strip;

  constructor(label) {
    this.#strip = new Strip(label);
    this.element = this.#strip.element;
  }

  /** Packets by CPU. */
  update(time, packets) {
    this.#strip.draw(this.#rates.update(time, packets));
  }
}

/** What is no balancer's own: the members of bonds, and what the kernel has to do. */
export class Host {
  #cpus = new Cpus("Packets/s that the kernel's network stack took, by CPU");
  #others = new Map();
  #list = element("div");

  constructor() {
    this.element = element("section", {}, element("h2", {}, "This host"), this.#list, this.#cpus.element);
  }

  /** Packets by CPU, and by queue of other interfaces. */
  update(time, packets, interfaces) {
    const names = new Set(interfaces.map(([name]) => name));
    for (const name of this.#others.keys()) if (!names.has(name)) this.#others.delete(name);
    for (const [name, queues] of interfaces) {
      if (!this.#others.has(name)) this.#others.set(name, new Queues(name));
      this.#others.get(name).update(time, queues);
    }
    replaced(this.#list, [...this.#others.values()].map((queues) => queues.element));
    this.#cpus.update(time, packets);
  }
}
