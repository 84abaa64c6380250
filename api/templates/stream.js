"use strict";
// Runs once per browser as a shared worker. It holds the event stream of all tabs, because browsers open at most six HTTP/1.1
// connections per host: with a stream per tab, the seventh tab never loads. Each message to a tab tells whether the stream is open,
// and, after a change, the name of the check.
const MINUTE = 60_000;
const tabs = [];
let stream;

const message = (check) => ({ open: stream.readyState === EventSource.OPEN, check });
const send = (check) => tabs.forEach((tab) => tab.postMessage(message(check)));

const listen = () => {
  stream?.close();
  // Relative to this script, and so below the base path.
  stream = new EventSource("events");
  for (const kind of ["open", "error"]) stream.addEventListener(kind, () => send());
  stream.addEventListener("change", ({ data }) => send(JSON.parse(data).check));
};

listen();
addEventListener("connect", ({ ports: [tab] }) => {
  tabs.push(tab);
  tab.postMessage(message());
});
// A rejected stream, unlike a lost one, is not opened again by the browser.
setInterval(() => {
  if (stream.readyState === EventSource.CLOSED) listen();
}, MINUTE);
