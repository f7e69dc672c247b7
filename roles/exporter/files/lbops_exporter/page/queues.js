// Copyright: (c) 2026, The lbops.xdp authors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later
// Which queue and which CPU has the work.

import { Strip } from "./charts.js";
import { element } from "./elements.js";
import { Rates } from "./rates.js";

export class Queues {
  #rates = { receive: new Rates(), transmit: new Rates() };
  #strips = {
    receive: new Strip("Packets/s by receive queue"),
    transmit: new Strip("Packets/s by transmit queue"),
  };

  constructor() {
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
  #strip = new Strip("Packets/s that the kernel took from devices, by CPU");

  constructor() {
    this.element = element("section", {}, element("h2", {}, "This host"), this.#strip.element);
  }

  update(time, packets) {
    this.#strip.draw(this.#rates.update(time, packets));
  }
}
