// Copyright: (c) 2026, The lbops.xdp authors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later
// What has grown, a second.

const KEPT = 150; // looks, five minutes

export class Rates {
  #time = null;
  #before = {};
  #rates = {};

  /** Counters by name; their rates by the same names, null where there is nothing to compare with. */
  update(time, counters) {
    const seconds = this.#time === null ? 0 : time - this.#time;
    if (this.#time !== null && seconds <= 0) return this.#rates;
    this.#rates = Object.fromEntries(
      Object.entries(counters).map(([name, now]) => {
        const grown = now - this.#before[name];
        return [name, seconds > 0 && grown >= 0 ? grown / seconds : null];
      }),
    );
    this.#time = time;
    this.#before = counters;
    return this.#rates;
  }
}

/** The last values of several series. */
export class History {
  constructor(count) {
    this.series = Array.from({ length: count }, () => []);
  }

  add(...values) {
    values.forEach((value, place) => {
      this.series[place].push(value ?? 0);
      if (this.series[place].length > KEPT) this.series[place].shift();
    });
  }
}
