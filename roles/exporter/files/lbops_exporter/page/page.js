// Copyright: (c) 2026, The lbops.xdp authors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later
// Looks every two seconds, and shows what has grown since.

import { Balancer } from "./balancer.js";
import { Host } from "./queues.js";
import { replaced } from "./elements.js";

const PERIOD = 2000; // milliseconds
const PATIENCE = 10000; // milliseconds
const place = document.getElementById("balancers");
const state = document.getElementById("state");
const find = document.getElementById("find");
const balancers = new Map();
const host = new Host();

document.getElementById("host").textContent = location.hostname;
find.addEventListener("input", () => balancers.forEach((balancer) => balancer.find(find.value)));

async function get(name) {
  const answer = await fetch(`api/v1/${name}`, { cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
  // With 503 comes what could be read, and what could not.
  if (!answer.ok && answer.status !== 503) throw new Error(`${answer.status} ${answer.statusText}`);
  return answer.json();
}

function say(text, isBad) {
  state.textContent = text;
  state.classList.toggle("bad", isBad);
}

function show(config, queues) {
  for (const name of balancers.keys()) if (!(name in config.balancers)) balancers.delete(name);
  for (const [name, found] of Object.entries(config.balancers)) {
    if (!balancers.has(name)) balancers.set(name, new Balancer(name));
    const balancer = balancers.get(name);
    balancer.update(found, queues.timestamp, queues.interfaces);
    balancer.find(find.value);
  }
  const named = Object.values(config.balancers).flatMap((found) => found.program.interfaces.map((entry) => entry.interface));
  const others = Object.entries(queues.interfaces).filter(([name]) => !named.includes(name));
  host.update(queues.timestamp, queues.cpus, others);
  replaced(place, [...[...balancers.values()].map((balancer) => balancer.element), host.element]);
  const errors = Object.entries({ ...config.errors, ...queues.errors }).map(([name, text]) => `${name}: ${text}`);
  if (errors.length) say(errors.join("; "), true);
  else if (balancers.size) say(`as of ${new Date(1000 * queues.timestamp).toLocaleTimeString()}`, false);
  else say("No balancer on this host.", true);
}

async function look() {
  try {
    show(...(await Promise.all([get("config"), get("queues")])));
  } catch (error) {
    say(`No answer from the exporter: ${error.message}`, true);
  }
  setTimeout(look, PERIOD);
}

look();
