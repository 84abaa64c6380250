"use strict";
// Keeps the page up to date: fetches it again after each state change, and once a minute.
const MINUTE = 60_000;
const { base } = document.currentScript.dataset;
const connection = document.getElementById("connection");
const news = document.getElementById("news");
let streaming = false;
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

const states = () => new Map([...document.querySelectorAll("[data-check]")].map(({ dataset }) => [dataset.check, dataset]));

const show = (fresh) => {
  const before = states();
  const focused = document.activeElement?.id;
  const main = document.adoptNode(fresh.getElementById("main"));
  document.getElementById("main").replaceWith(main);
  document.querySelector("link[rel=icon]").href = fresh.querySelector("link[rel=icon]").href;
  document.title = fresh.title;
  relative();
  if (focused && main.contains(document.getElementById(focused))) document.getElementById(focused).focus({ preventScroll: true });
  const changed = [...states().values()].filter(({ check, state }) => before.get(check)?.state !== state);
  if (changed.length) setText(news, `${changed.map(({ name, state }) => `${name} is ${state.toLowerCase()}`).join(", ")}. ${document.querySelector("h2").textContent}.`);
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
      if (streaming) live("live", "Live");
      else live("polled", "Updated once a minute");
    } catch {
      live("lost", "Connection lost; retrying");
    }
  }
  busy = false;
};

// Called for each change, and when the stream opens or is lost: changes may have been missed in between.
const follow = (open) => {
  streaming = open;
  refresh();
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
    for (const kind of ["open", "change", "error"]) own.addEventListener(kind, () => follow(own.readyState === EventSource.OPEN));
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
    const worker = new SharedWorker(`${base}/stream.js`, "1");
    worker.port.onmessage = ({ data }) => follow(data);
    worker.addEventListener("error", listenAlone, { once: true });
  } catch {
    listenAlone();
  }
};

listen();
relative();
setInterval(relative, 5_000);
setInterval(refresh, MINUTE);
