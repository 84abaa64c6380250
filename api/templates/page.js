"use strict";
// Keeps a page up to date: fetches what has changed after each state change, and once a minute. Without it, pages reload.
const MINUTE = 60_000;
const { base } = document.currentScript.dataset;
const connection = document.getElementById("connection");
const news = document.getElementById("news");
const main = () => document.getElementById("main");
let streaming = false;
let wanted;
let busy = false;

const setText = (element, text) => {
  if (element && element.textContent !== text) element.textContent = text;
};

const span = (seconds) => {
  const [size, unit] = [[86400, "d"], [3600, "h"], [60, "min"], [0, "s"]].find(([size]) => seconds >= size);
  return `${Math.floor(seconds / (size || 1))} ${unit}`;
};

const relative = () => {
  for (const time of document.querySelectorAll("time[data-form]")) {
    const seconds = Math.max(0, (Date.now() - Date.parse(time.dateTime)) / 1000);
    time.title ||= time.textContent;
    setText(time, time.dataset.form === "for" ? `for ${span(seconds)}` : seconds < 5 ? "just now" : `${span(seconds)} ago`);
  }
};

// Groups that are closed stay closed.
const KEY = `closed groups of ${location.pathname}`;
const closed = () => {
  try {
    return new Set(JSON.parse(localStorage.getItem(KEY) ?? "[]"));
  } catch {
    return new Set();
  }
};
const groups = () => [...document.querySelectorAll("details.group")];

document.addEventListener("toggle", ({ target }) => {
  if (!target.matches?.("details.group") || filter()) return;
  const names = closed();
  names[target.open ? "delete" : "add"](target.id);
  try {
    localStorage.setItem(KEY, JSON.stringify([...names]));
  } catch {
    // Without storage, groups are open after a reload.
  }
}, true);

// The filter shows the checks whose row or group contains every word.
const filter = () => document.getElementById("filter")?.value.trim().toLowerCase() ?? "";

const applyFilter = () => {
  const words = filter().split(/\s+/).filter(Boolean);
  const names = closed();
  let found = 0;
  const rows = document.querySelectorAll("[data-check]");
  for (const row of rows) {
    const group = row.closest("details.group")?.querySelector("h3").textContent ?? "";
    const state = row.dataset.state;
    const text = `${row.dataset.check} ${row.dataset.name} ${state} ${group} ${row.querySelector(".check")?.textContent}`.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
    found += !row.hidden;
  }
  for (const group of groups()) {
    group.hidden = words.length > 0 && !group.querySelector("[data-check]:not([hidden])");
    group.open = words.length > 0 || !names.has(group.id);
  }
  setText(document.getElementById("found"), words.length ? `${found} of ${rows.length}` : "");
};

document.addEventListener("input", ({ target }) => {
  if (target.id === "filter") applyFilter();
});

// Bars can be read with the pointer and with the arrow keys.
const reading = document.createElement("div");
reading.className = "reading";
reading.hidden = true;
reading.ariaHidden = "true";
document.body.append(reading);

const clock = (seconds) => new Date(seconds * 1000).toISOString().slice(0, 19).replace("T", " ");

// The places and texts of all bars, oldest first. The newest result is at the right end.
const entries = (bars) => {
  if (bars.dataset.values) {
    const table = document.getElementById(bars.dataset.values);
    const heads = [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
    return [...table.tBodies[0].rows].map((row) => ({
      slot: Number(row.dataset.slot),
      text: [...row.cells].map((cell, column) => (column ? `${heads[column]} ${cell.textContent}` : cell.textContent)).join(", "),
    }));
  }
  const [newest, ...results] = bars.dataset.results.split(" ");
  return results.map((result, place) => {
    const [age, latency] = result.split(",");
    const text = latency === undefined ? "failed" : `${latency} ms`;
    return { slot: slots(bars) - results.length + place, text: `${clock(newest - age)} UTC: ${text}` };
  });
};

const slots = (bars) => Number(bars.dataset.slots ?? 60);

const read = (bars, index) => {
  const all = entries(bars);
  if (!all.length) return;
  const place = Math.min(Math.max(index, 0), all.length - 1);
  const svg = bars.querySelector("svg").getBoundingClientRect();
  bars.ariaValueNow = place + 1;
  bars.ariaValueText = all[place].text;
  reading.textContent = all[place].text;
  reading.hidden = false;
  const x = svg.left + (all[place].slot + 0.5) * svg.width / slots(bars);
  const left = Math.min(Math.max(x - reading.offsetWidth / 2, 4), document.documentElement.clientWidth - reading.offsetWidth - 4);
  reading.style.left = `${left + scrollX}px`;
  reading.style.top = `${svg.top + scrollY - reading.offsetHeight - 4}px`;
  bars.style.setProperty("--at", `${x - bars.getBoundingClientRect().left}px`);
  bars.dataset.read = "";
};

const unread = () => {
  reading.hidden = true;
  for (const bars of document.querySelectorAll("[data-read]")) delete bars.dataset.read;
};

const makeReadable = (within) => {
  for (const bars of within.querySelectorAll(".bars:not([tabindex])")) {
    const count = entries(bars).length;
    if (!count) continue;
    Object.assign(bars, { role: "slider", tabIndex: 0, ariaValueMin: 1, ariaValueMax: count, ariaValueNow: count });
    bars.ariaValueText = bars.ariaLabel;
    bars.ariaLabel = bars.dataset.label ?? `Last results of ${bars.closest("[data-check]").dataset.name}`;
    bars.setAttribute("aria-readonly", "true");
  }
};

document.addEventListener("pointermove", ({ target, clientX }) => {
  const bars = target.closest?.(".bars[tabindex]");
  if (!bars) {
    if (!document.activeElement?.matches(".bars")) unread();
    return;
  }
  unread();
  const svg = bars.querySelector("svg").getBoundingClientRect();
  const slot = (clientX - svg.left) * slots(bars) / svg.width - 0.5;
  const far = entries(bars).map((entry) => Math.abs(entry.slot - slot));
  read(bars, far.indexOf(Math.min(...far)));
});
document.addEventListener("focusin", ({ target }) => {
  unread();
  if (target.matches(".bars[tabindex]")) read(target, Number(target.ariaValueNow) - 1);
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") return unread();
  const bars = event.target.closest?.(".bars[tabindex]");
  const now = Number(bars?.ariaValueNow) - 1;
  const place = {
    ArrowLeft: now - 1, ArrowDown: now - 1, ArrowRight: now + 1, ArrowUp: now + 1,
    PageDown: now - 10, PageUp: now + 10, Home: 0, End: Infinity,
  }[event.key];
  if (!bars || place === undefined) return;
  event.preventDefault();
  unread();
  read(bars, place);
});

const states = () => new Map([...document.querySelectorAll("[data-check]")].map(({ dataset }) => [dataset.check, { ...dataset }]));

// Sorts elements by their order, and moves only those that are not in place.
const sort = (parent, selector) => {
  const current = () => [...parent.children].filter((element) => element.matches(selector));
  [...current()].sort((one, other) => one.dataset.order - other.dataset.order).forEach((element, place) => {
    const there = current()[place];
    if (there !== element) parent.insertBefore(element, there);
  });
};

const replace = (fresh, element) => {
  const old = document.getElementById(element.id);
  if (old) old.replaceWith(document.adoptNode(element));
};

// Puts the rows of a partial page into this one.
const merge = (fresh) => {
  for (const element of fresh.querySelectorAll("#headline, .tally, [data-check]")) {
    makeReadable(element);
    replace(fresh, element);
  }
  for (const group of fresh.querySelectorAll("details.group")) {
    document.getElementById(group.id).dataset.order = group.dataset.order;
  }
  for (const table of document.querySelectorAll("#groups table")) sort(table, "tbody");
  sort(document.getElementById("groups"), "details.group");
};

const show = (fresh, advance) => {
  const before = states();
  const focused = document.activeElement?.id;
  const next = fresh.getElementById("main");
  const partial = "partial" in next.dataset;
  // Other checks are configured.
  if (partial && next.dataset.checks !== main().dataset.checks) {
    delete main().dataset.token;
    return void refresh();
  }
  if (partial) {
    merge(fresh);
    if (advance) main().dataset.token = next.dataset.token;
  } else {
    const line = document.getElementById("filter-line");
    next.querySelector("#filter-line")?.replaceWith(line ?? "");
    main().replaceWith(document.adoptNode(next));
    makeReadable(main());
  }
  document.querySelector("link[rel=icon]").href = fresh.querySelector("link[rel=icon]").href;
  document.title = fresh.title;
  relative();
  applyFilter();
  if (focused && document.activeElement?.id !== focused && main().querySelector(`[id="${CSS.escape(focused)}"]`)) {
    document.getElementById(focused).focus({ preventScroll: true });
  }
  const changed = [...states().values()].filter(({ check, state }) => before.has(check) && before.get(check).state !== state);
  if (changed.length) setText(news, `${changed.map(({ name, state }) => `${name} is ${state.toLowerCase()}`).join(", ")}. ${document.querySelector("h2").textContent}.`);
};

const live = (state, text) => {
  connection.dataset.state = state;
  setText(connection, text);
};

// Fetches the rows of the checks in `names`, or without them all rows that have changed since the last time.
const refresh = async (names) => {
  wanted = names && wanted !== null ? new Set([...(wanted ?? []), ...names]) : null;
  if (busy) return;
  busy = true;
  while (wanted !== undefined) {
    const only = wanted && [...wanted].join(",");
    wanted = undefined;
    try {
      const url = new URL(location);
      url.hash = "";
      // Without a token, the page consists of one part.
      if (main().dataset.token) url.searchParams.set(only ? "only" : "since", only || main().dataset.token);
      const response = await fetch(url, { headers: { accept: "text/html" }, cache: "no-store", signal: AbortSignal.timeout(10_000) });
      if (!response.ok) throw new Error(response.statusText);
      show(new DOMParser().parseFromString(await response.text(), "text/html"), !only);
      if (streaming) live("live", "Live");
      else live("polled", "Updated once a minute");
    } catch {
      live("lost", "Connection lost; retrying");
    }
  }
  busy = false;
};

// Called for each change of a check, and without one when the stream opens or is lost: changes may have been missed in between.
const follow = (open, check) => {
  streaming = open;
  refresh(check && [check]);
};

// For browsers without shared workers: a stream of this tab, while it is visible. Hidden tabs are updated once a minute.
const listenAlone = () => {
  let stream;
  const listen = () => {
    stream?.close();
    stream = undefined;
    streaming = false;
    if (document.hidden) return;
    const own = new EventSource(`${base}/events`);
    for (const kind of ["open", "error"]) own.addEventListener(kind, () => follow(own.readyState === EventSource.OPEN));
    own.addEventListener("change", ({ data }) => follow(true, JSON.parse(data).check));
    stream = own;
  };
  listen();
  document.addEventListener("visibilitychange", listen);
  setInterval(() => {
    if (stream?.readyState === EventSource.CLOSED) listen();
  }, MINUTE);
};

const listen = () => {
  try {
    // The name is the version of the messages, so that no page uses the worker of another build that has other ones.
    const worker = new SharedWorker(`${base}/stream.js`, "2");
    worker.port.onmessage = ({ data: { open, check } }) => follow(open, check);
    worker.addEventListener("error", listenAlone, { once: true });
  } catch {
    listenAlone();
  }
};

for (const line of document.querySelectorAll("#filter-line")) line.hidden = false;
makeReadable(document);
applyFilter();
listen();
relative();
setInterval(relative, 5_000);
setInterval(() => refresh(), MINUTE);
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) refresh();
});
