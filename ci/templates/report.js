"use strict";
// The page is complete without this script, which adds only the two searches.
(() => {
  const WAIT = 120;
  const MOST = 2000;

  /** Calls `search` with what is typed, in lower case, and shows what it returns. */
  const connect = (id, search) => {
    const input = document.getElementById(id);
    if (!input) return;
    input.closest("[hidden]").hidden = false;
    const output = input.parentElement.querySelector("output");
    let timer;
    input.addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(() => {
        output.textContent = search(input.value.trim().toLowerCase());
      }, WAIT);
    });
  };

  const opened = new Map();
  /** Opens what has hits, and restores what was open before the search. */
  const unfold = (details, words, hits) => {
    if (!words) {
      if (opened.has(details)) details.open = opened.get(details);
      opened.delete(details);
      return;
    }
    if (!opened.has(details)) opened.set(details, details.open);
    details.open = hits > 0;
  };

  const tests = document.querySelectorAll("#tests li");
  const suites = document.querySelectorAll("#tests details.suite");
  connect("test-search", (words) => {
    let found = 0;
    for (const test of tests) {
      const suite = test.closest(".suite")?.querySelector(".name").textContent ?? "";
      const hit = `${test.textContent} ${suite}`.toLowerCase().includes(words);
      test.hidden = !hit;
      found += hit;
    }
    for (const suite of suites) {
      const hits = suite.querySelectorAll("li:not([hidden])").length;
      suite.hidden = hits === 0;
      unfold(suite, words, hits);
    }
    return words ? `${found} of ${tests.length}` : "";
  });

  const logs = [...document.querySelectorAll("details.log")].map((details) => ({
    details,
    pre: details.querySelector("pre"),
  }));
  connect("log-search", (words) => {
    let found = 0;
    for (const log of logs) {
      log.text ??= log.pre.textContent;
      log.lines ??= log.text.split("\n");
      // The numbers are those of the file, whose middle the page may lack.
      const { head = Infinity, leftOut = 0 } = log.details.dataset;
      const number = (index) => (index < Number(head) ? index + 1 : index + Number(leftOut));
      let hits = 0;
      if (words) {
        const shown = [];
        for (const [index, line] of log.lines.entries()) {
          if (!line.toLowerCase().includes(words)) continue;
          hits += 1;
          if (hits <= MOST) shown.push(`${String(number(index)).padStart(6)}  ${line}`);
        }
        if (hits > MOST) shown.push(`… and ${hits - MOST} more`);
        log.pre.textContent = shown.join("\n");
      } else {
        log.pre.textContent = log.text;
      }
      unfold(log.details, words, hits);
      found += hits;
    }
    return words ? (found === 1 ? "1 line" : `${found} lines`) : "";
  });

  /** Opens the log that a link leads to. */
  const openTarget = () => {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (target instanceof HTMLDetailsElement) target.open = true;
  };
  addEventListener("hashchange", openTarget);
  openTarget();
})();
