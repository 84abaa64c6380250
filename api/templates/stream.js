"use strict";
// Runs once per browser as a shared worker. It holds the event stream of all tabs, because browsers open at most six HTTP/1.1
// connections per host: with a stream per tab, the seventh tab never loads. Each message to a tab tells whether the stream is open.
const MINUTE = 60_000;
const tabs = [];
let stream;

const isOpen = () => stream.readyState === EventSource.OPEN;

const listen = () => {
  stream?.close();
  // Relative to this script, and so below the base path.
  stream = new EventSource("events");
  for (const kind of ["open", "change", "error"]) {
    stream.addEventListener(kind, () => tabs.forEach((tab) => tab.postMessage(isOpen())));
  }
};

listen();
addEventListener("connect", ({ ports: [tab] }) => {
  tabs.push(tab);
  tab.postMessage(isOpen());
});
// A rejected stream, unlike a lost one, is not opened again by the browser.
setInterval(() => {
  if (stream.readyState === EventSource.CLOSED) listen();
}, MINUTE);
