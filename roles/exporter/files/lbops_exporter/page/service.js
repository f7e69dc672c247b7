// Copyright: (c) 2026, The lbops.xdp authors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later
// One service and its backends.

import { Chart } from "./charts.js";
import { element, replaced, table } from "./elements.js";
import { History, Rates } from "./rates.js";
import { endpoint, percent, quantity, whole } from "./text.js";

const MOST_ROWS = 100;
const COUNTERS = ["packets", "bytes", "reply_packets", "reply_bytes"];
const HEADINGS = ["Backend", "Address", "State", "Weight", "Share", "Packets/s", "bit/s", "Packets", "Replies"];

const counters = (entry) => Object.fromEntries(COUNTERS.map((name) => [name, entry[name]]));
const bits = (rates) => (rates.bytes === null ? null : 8 * (rates.bytes + rates.reply_bytes));

function stateOf(backend) {
  if (backend.state === "backup" && backend.healthy === false) return "unhealthy";
  if (backend.state !== "enabled") return backend.state;
  if (backend.healthy === null || backend.healthy === undefined) return "enabled";
  return backend.healthy ? "healthy" : "unhealthy";
}

class Backend {
  #rates = new Rates();
  #history = new History(1);
  #chart = new Chart(["to-backend"], "packets/s over the last five minutes");
  #cells = HEADINGS.map(() => element("td"));

  constructor() {
    this.element = element("tr", {}, ...this.#cells);
    for (const cell of this.#cells.slice(3)) cell.className = "number";
    this.#cells[5].classList.add("with-chart");
  }

  /** Packets a second. */
  count(time, backend) {
    this.rates = this.#rates.update(time, counters(backend));
    this.#history.add(this.rates.packets);
    return this.rates.packets ?? 0;
  }

  draw(backend, share, wanted) {
    const state = stateOf(backend);
    const address = endpoint(backend.address ?? backend.interface, backend.port);
    const name = backend.name ?? address;
    const texts = [name, address, state, `${backend.weight} (${percent(wanted)})`, percent(share)];
    texts.forEach((text, place) => (this.#cells[place].textContent = text));
    this.#cells[2].className = `state ${state}`;
    this.#cells[4].style.setProperty("--share", share ?? 0);
    this.#chart.draw(this.#history);
    this.#cells[5].replaceChildren(this.#chart.element, ` ${quantity(this.rates.packets)}`);
    this.#cells[6].textContent = quantity(bits(this.rates));
    this.#cells[7].textContent = whole(backend.packets);
    this.#cells[8].textContent = whole(backend.reply_packets);
  }
}

export class Service {
  #rates = new Rates();
  #history = new History(2);
  #chart = new Chart(["to-backend", "to-client"], "packets/s over the last five minutes, to backends and to clients");
  #name = element("b");
  #where = element("span", { className: "where" });
  #numbers = element("span", { className: "numbers" });
  #health = element("span", { className: "state" });
  #more = element("p", { className: "more" });
  #backends = new Map();
  #names = "";

  constructor(open) {
    [this.table, this.body] = table("backends", HEADINGS);
    const summary = element("summary", {}, this.#name, this.#where, this.#health, this.#chart.element, this.#numbers);
    this.element = element("details", { open, className: "service" }, summary, this.table, this.#more);
    this.element.addEventListener("toggle", () => this.#draw?.());
  }

  #draw;

  /** Packets and bytes a second. */
  update(time, service, backends) {
    const rates = this.#rates.update(time, counters(service));
    this.#history.add(rates.packets, rates.reply_packets);
    this.#chart.draw(this.#history);
    this.#name.textContent = service.name;
    const kind = `${service.forwarding}, ${service.scheduler}`;
    this.#where.textContent = `${service.protocol} ${endpoint(service.address, service.port)}, ${kind}`;
    const replies = ["dsr", "ipip", "gue"].includes(service.forwarding) ? "" : ` / ${quantity(rates.reply_packets)}`;
    this.#numbers.textContent = `${quantity(rates.packets)}${replies} packets/s, ${quantity(bits(rates))}bit/s, ${whole(service.packets)} packets`;
    this.#count(time, service, backends);
    return rates;
  }

  #count(time, service, backends) {
    const key = (backend) => `${backend.address ?? backend.interface} ${backend.port}`;
    const keys = new Set(backends.map(key));
    for (const known of this.#backends.keys()) if (!keys.has(known)) this.#backends.delete(known);
    const counted = backends.map((backend) => {
      if (!this.#backends.has(key(backend))) this.#backends.set(key(backend), new Backend());
      const row = this.#backends.get(key(backend));
      return { backend, row, rate: row.count(time, backend) };
    });
    const down = backends.filter((backend) => stateOf(backend) === "unhealthy").length;
    const share = (backend) => (["drained", "unhealthy"].includes(stateOf(backend)) ? 0 : backend.weight);
    const onBackups = backends.every((backend) => backend.state === "backup" || !share(backend));
    const gets = (backend) => (onBackups || backend.state !== "backup" ? share(backend) : 0);
    const ready = backends.filter((backend) => gets(backend)).length;
    this.#health.textContent = `${ready} of ${backends.length} backends are ready`;
    this.#health.className = `state ${ready ? (down ? "unhealthy" : "healthy") : "none"}`;
    this.#names = [service.name, service.address, ...backends.flatMap((one) => [one.name, one.address])].join(" ").toLowerCase();
    const sum = (value) => counted.reduce((total, one) => total + value(one), 0);
    const rate = sum((one) => one.rate);
    const weight = sum((one) => gets(one.backend));
    this.#draw = () => {
      if (!this.element.open || this.element.hidden) return;
      // Of many the busiest; few stay where the inventory has them.
      const many = counted.length > MOST_ROWS;
      const shown = many ? counted.toSorted((one, other) => other.rate - one.rate).slice(0, MOST_ROWS) : counted;
      for (const one of shown)
        one.row.draw(one.backend, rate ? one.rate / rate : null, weight ? gets(one.backend) / weight : null);
      replaced(this.body, shown.map((one) => one.row.element));
      this.#more.textContent = many ? `and ${whole(counted.length - shown.length)} that are less busy` : "";
    };
    this.#draw();
  }

  find(text) {
    const hidden = text !== "" && !this.#names.includes(text);
    if (hidden === this.element.hidden) return;
    this.element.hidden = hidden;
    this.#draw();
  }
}
