// Copyright: (c) 2026, The lbops.xdp authors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later
// Values as people read them.

const UNITS = ["", "k", "M", "G", "T"];

/** 0, 7.5, 999, 1.23k, 45.6M; – for what is not known yet. */
export function quantity(value) {
  if (value === null || value === undefined) return "–";
  if (value < 999.5) return value < 9.95 && value % 1 ? value.toFixed(1) : value.toFixed(0);
  let thousands = 0;
  for (; value >= 999.5 && thousands < UNITS.length - 1; thousands++) value /= 1000;
  return value.toFixed(value < 9.995 ? 2 : value < 99.95 ? 1 : 0) + UNITS[thousands];
}

/** Every digit: 1,234,567. */
export const whole = (value) => value.toLocaleString("en");

export const percent = (share) => (share === null ? "–" : `${Math.round(100 * share)} %`);

export function endpoint(address, port) {
  if (port === null || port === undefined) return address;
  return address.includes(":") ? `[${address}]:${port}` : `${address}:${port}`;
}
