"use strict";
// Keeps the page up to date: fetches it again after each state change, and once a minute.
const MINUTE = 60_000;
const { base } = document.currentScript.dataset;
const connection = document.getElementById("connection");
const news = document.getElementById("news");
let stream;
let wanted = false;
let busy = false;

const setText = (element, text) => {
  if (element.textContent !== text) element.textContent = text;
};

const relative = () => {
  for (const time of document.querySelectorAll("time")) {
    const seconds = Math.max(0, (Date.now() - Date.parse(time.dateTime)) / 1000);
    const [size, unit] = [[86400, "d"], [3600, "h"], [60, "min"], [0, "s"]].find(([size]) => seconds >= size);
    const span = `${Math.floor(seconds / (size || 1))} ${unit}`;
    time.title ||= time.textContent;
    setText(time, time.dataset.form === "for" ? `for ${span}` : seconds < 5 ? "just now" : `${span} ago`);
  }
};

const states = () => new Map([...document.querySelectorAll("[data-check]")].map(({ dataset }) => [dataset.check, dataset.state]));

const show = (fresh) => {
  const before = states();
  const focused = document.activeElement?.id;
  const main = document.adoptNode(fresh.getElementById("main"));
  document.getElementById("main").replaceWith(main);
  document.querySelector("link[rel=icon]").href = fresh.querySelector("link[rel=icon]").href;
  document.title = fresh.title;
  relative();
  if (focused && main.contains(document.getElementById(focused))) document.getElementById(focused).focus({ preventScroll: true });
  const changed = [...states()].filter(([name, state]) => before.get(name) !== state);
  if (changed.length) setText(news, `${changed.map(([name, state]) => `${name} is ${state.toLowerCase()}`).join(", ")}. ${document.querySelector("h2").textContent}.`);
};

const live = (state, text) => {
  connection.dataset.state = state;
  setText(connection, text);
};

const refresh = async () => {
  wanted = true;
  if (busy) return;
  busy = true;
  while (wanted) {
    wanted = false;
    try {
      const response = await fetch(`${base}/`, { headers: { accept: "text/html" }, cache: "no-store", signal: AbortSignal.timeout(10_000) });
      if (!response.ok) throw new Error(response.statusText);
      show(new DOMParser().parseFromString(await response.text(), "text/html"));
      if (stream.readyState === EventSource.OPEN) live("live", "Live");
      else live("polled", "Updated once a minute");
    } catch {
      live("lost", "Connection lost; retrying");
    }
  }
  busy = false;
};

const listen = () => {
  stream?.close();
  stream = new EventSource(`${base}/events`);
  // Fetches changes that were missed while disconnected.
  stream.addEventListener("open", refresh);
  stream.addEventListener("change", refresh);
  stream.addEventListener("error", refresh);
};

listen();
relative();
setInterval(relative, 5_000);
setInterval(() => {
  if (stream.readyState === EventSource.CLOSED) listen();
  refresh();
}, MINUTE);
