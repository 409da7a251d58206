// Keys, and the parts of a page that change while a run goes on. All texts come from the server as escaped HTML.
"use strict";

const IDLE_SECONDS = 20, RUNNING_SECONDS = 2;

function later(seconds, action) {
  window.setTimeout(action, 1000 * seconds);
}

async function keepLive(curves) {
  let seconds = IDLE_SECONDS;
  try {
    const address = new URL(curves.dataset.live, location.href);
    address.searchParams.set("offset", curves.dataset.offset);
    const answer = await fetch(address);
    if (answer.ok) {
      const parts = await answer.json();
      if (parts.curves !== null) curves.innerHTML = parts.curves;
      curves.dataset.offset = parts.offset;
      for (const name of ["status", "events"]) {
        const part = document.getElementById(name);
        if (part.innerHTML !== parts[name]) part.innerHTML = parts[name];
      }
      if (parts.running) seconds = RUNNING_SECONDS;
    }
  } catch {
    seconds = IDLE_SECONDS; // the viewer has ended, or starts again
  }
  later(document.hidden ? IDLE_SECONDS : seconds, () => keepLive(curves));
}

async function keepFresh(part) {
  try {
    const answer = await fetch(location.href);
    if (answer.ok && !part.contains(document.activeElement)) {
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const next = page.getElementById(part.id);
      if (next && next.innerHTML !== part.innerHTML) part.innerHTML = next.innerHTML;
    }
  } catch {
    // tried again below
  }
  later(Number(part.dataset.refresh), () => keepFresh(part));
}

function mark(scales, index) {
  scales.forEach((scale, i) => scale.classList.toggle("marked", i === index));
  if (scales[index]) scales[index].scrollIntoView({ block: "nearest" });
}

function markedIndex(scales) {
  return scales.findIndex((scale) => scale.classList.contains("marked"));
}

function answerScale(scales, key) {
  const index = markedIndex(scales);
  if (key === "Backspace") {
    mark(scales, Math.max(0, index - 1));
    return true;
  }
  const radio = index < 0 ? null : scales[index].querySelector(`input[value="${key}"]`);
  if (!radio) return false;
  radio.checked = true;
  mark(scales, Math.min(index + 1, scales.length - 1));
  return true;
}

function onKey(event, scales) {
  const inField = event.target.closest("input:not([type=radio]), select, textarea, summary, a, button");
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (inField && (event.key === "Enter" || inField.matches("input, select, textarea"))) return;
  const isDigit = /^[0-9]$/.test(event.key) || event.key === "Backspace";
  if (scales.length && isDigit && answerScale(scales, event.key)) {
    event.preventDefault();
    return;
  }
  const target = [...document.querySelectorAll("[data-key]")].find(
    (each) => each.dataset.key === event.key && each.matches("a, button")
  );
  if (target) {
    event.preventDefault();
    target.click();
  }
}

function start() {
  const curves = document.querySelector("[data-live]");
  if (curves) later(RUNNING_SECONDS, () => keepLive(curves));
  const part = document.querySelector("[data-refresh]");
  if (part) later(Number(part.dataset.refresh), () => keepFresh(part));
  // A text that scrolls must be reachable by keyboard; one that does not would only be in the way.
  for (const text of document.querySelectorAll(".text"))
    if (text.scrollHeight > text.clientHeight) text.tabIndex = 0;
  const scales = [...document.querySelectorAll(".scale")];
  if (scales.length) mark(scales, 0);
  scales.forEach((scale, i) => scale.addEventListener("focusin", () => mark(scales, i)));
  document.addEventListener("keydown", (event) => onKey(event, scales));
  // A second click must not send a second answer.
  for (const form of document.querySelectorAll("form[method=post][action]"))
    form.addEventListener("submit", (event) => {
      if (form.dataset.sent) event.preventDefault();
      form.dataset.sent = "yes";
    });
}

start();
