// Copyright: (c) 2026, The lbops.xdp authors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later
// One balancer: its interfaces and program, services and backends, and what was not forwarded.

import { element, replaced, table } from "./elements.js";
import { Cpus, Queues } from "./queues.js";
import { Rates } from "./rates.js";
import { Service } from "./service.js";
import { quantity, whole } from "./text.js";

// Backends, of all services together: with more the services' own lines are the overview.
const MOST_OPEN = 200;

function programText(program) {
  if (program.verified_instructions === undefined) return "The program is not loaded: the kernel gets all packets.";
  const size = `${whole(program.verified_instructions)} instructions verified, ${whole(program.jited_bytes)} bytes of machine code`;
  const tables = `generation ${program.generation}, lookup tables ${program.tables_digest.slice(0, 12)}`;
  return `${program.name}: ${size}; digest ${program.digest.slice(0, 12)}; ${tables}`;
}

function interfaceText(entry) {
  if (!entry.present) return `${entry.interface} does not exist`;
  if (entry.shadowed_by) {
    return `${entry.interface}: the program is behind what may keep packets from it: ${entry.shadowed_by.join("; ")}`;
  }
  const link = entry.up ? "" : ", the link is down";
  if (!entry.attached) return `${entry.interface}: the program is not attached, the kernel gets all packets${link}`;
  return `${entry.interface}: program ${entry.program_id} on the ${entry.hook} hook${link}`;
}

/** A line for each text; those that are bad are told from others. */
class Lines {
  constructor(className) {
    this.element = element("ul", { className });
  }

  show(lines) {
    this.element.replaceChildren(...lines.map(([text, isBad]) => element("li", { className: isBad ? "bad" : "" }, text)));
    this.element.hidden = !lines.length;
  }
}

class Reasons {
  #rates = new Rates();

  constructor() {
    [this.element, this.body] = table("reasons", ["Verdict", "Reason", "Packets/s", "Packets"]);
  }

  /** Packets a second that were dropped. */
  update(time, reasons) {
    const named = reasons.map((row) => ({ ...row, key: `${row.verdict} ${row.reason}` }));
    const rates = this.#rates.update(time, Object.fromEntries(named.map((row) => [row.key, row.packets])));
    const met = named.filter((row) => row.packets).sort((one, other) => other.packets - one.packets);
    const rows = met.map((row) =>
      element(
        "tr",
        { className: row.verdict },
        element("td", {}, row.verdict),
        element("td", {}, row.reason),
        element("td", { className: "number" }, quantity(rates[row.key])),
        element("td", { className: "number" }, whole(row.packets)),
      ),
    );
    this.body.replaceChildren(...rows);
    this.element.hidden = !rows.length;
    return named.reduce((sum, row) => sum + (row.verdict === "drop" ? (rates[row.key] ?? 0) : 0), 0);
  }
}

class Tiles {
  #values;

  constructor(...names) {
    this.#values = names.map(() => element("b"));
    const tiles = names.map((name, place) => element("div", { className: "tile" }, this.#values[place], ` ${name}`));
    this.element = element("div", { className: "tiles" }, ...tiles);
  }

  show(...texts) {
    texts.forEach((text, place) => (this.#values[place].textContent = text));
  }
}

export class Balancer {
  #program = element("p", { className: "program" });
  #interfaces = new Lines("interfaces");
  #problems = new Lines("problems");
  #tiles = new Tiles("packets/s to backends", "packets/s to clients", "bit/s", "packets/s dropped", "ns a packet");
  #services = new Map();
  #list = element("div");
  #reasons = new Reasons();
  #queues = new Map();
  #queueList = element("div");
  #cpus = new Cpus("Packets/s in the program, by CPU");
  #runs = new Rates();

  constructor(name) {
    this.element = element(
      "section",
      { id: `balancer-${name}` },
      element("h2", {}, name),
      this.#interfaces.element,
      this.#problems.element,
      this.#program,
      this.#tiles.element,
      this.#list,
      element("h3", {}, "Not forwarded"),
      this.#reasons.element,
      this.#queueList,
      this.#cpus.element,
    );
  }

  /** `found` as /api/v1/config has it; packets by interface and queue, and when they were read. */
  update(found, queuesTime, queues) {
    this.#program.textContent = programText(found.program);
    this.#interfaces.show(
      found.program.interfaces.map((entry) => [interfaceText(entry), !(entry.present && entry.attached && entry.up)]),
    );
    this.#problems.show(found.program.problems.map((text) => [text, true]));
    const backends = Map.groupBy(found.backends, (backend) => backend.service);
    const rates = found.services.map((service) => {
      if (!this.#services.has(service.name)) this.#services.set(service.name, new Service(found.backends.length <= MOST_OPEN));
      return this.#services.get(service.name).update(found.timestamp, service, backends.get(service.name) ?? []);
    });
    const names = new Set(found.services.map((service) => service.name));
    for (const name of this.#services.keys()) if (!names.has(name)) this.#services.delete(name);
    replaced(this.#list, found.services.map((service) => this.#services.get(service.name).element));
    const dropped = this.#reasons.update(found.timestamp, found.reasons);
    const { run_time_ns: time, run_count: count } = this.#runs.update(found.timestamp, {
      run_time_ns: found.program.run_time_ns ?? 0,
      run_count: found.program.run_count ?? 0,
    });
    const sum = (name) => rates.reduce((total, rate) => total + (rate[name] ?? 0), 0);
    this.#tiles.show(
      quantity(sum("packets")),
      quantity(sum("reply_packets")),
      quantity(8 * (sum("bytes") + sum("reply_bytes"))),
      quantity(dropped),
      count ? (time / count).toFixed(0) : "–",
    );
    this.#updateQueues(found.program.interfaces.map((entry) => entry.interface), queuesTime, queues);
    this.#cpus.update(found.timestamp, found.cpus);
  }

  #updateQueues(names, time, queues) {
    // Where there is one interface, nobody need be told which.
    const key = (name) => (names.length > 1 ? name : "");
    const kept = new Set(names.map(key));
    for (const known of this.#queues.keys()) if (!kept.has(known)) this.#queues.delete(known);
    for (const name of names) {
      if (!this.#queues.has(key(name))) this.#queues.set(key(name), new Queues(key(name)));
      this.#queues.get(key(name)).update(time, queues[name]);
    }
    replaced(this.#queueList, names.map((name) => this.#queues.get(key(name)).element));
  }

  find(text) {
    this.#services.forEach((service) => service.find(text.trim().toLowerCase()));
  }
}
