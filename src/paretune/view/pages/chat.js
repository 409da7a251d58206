// The conversation of the chat page: events of answers as JSON Lines, written into the page as text.
"use strict";

const form = document.getElementById("chat");
const field = (id) => document.getElementById(id);
let running = null; // what ends the request in progress
let isFirst = true; // the viewer has no answer of this conversation

function show(id, text) {
  const part = field(id);
  if (part.textContent !== text) part.textContent = text;
  if (id === "problem") part.hidden = !text;
}

function cell(kind, text, classes) {
  const part = document.createElement(kind);
  part.textContent = text;
  if (classes) part.className = classes;
  return part;
}

function showScores(table, scorers, rows) {
  const head = table.querySelector("thead tr");
  for (const name of scorers) {
    const part = cell("th", name, "num");
    part.scope = "col";
    head.append(part);
  }
  for (const row of rows) {
    const line = document.createElement("tr");
    const name = cell("th", `${row.objective} `);
    name.scope = "row";
    const arrow = cell("span", row.arrow, "soft");
    arrow.ariaHidden = "true";
    name.append(arrow, cell("span", row.words, "hidden"));
    line.append(name, ...row.values.map((value) => cell("td", value, "num")));
    table.tBodies[0].append(line);
  }
  table.hidden = false;
}

function beginTurn(prompt) {
  const turn = field("turn").content.cloneNode(true).firstElementChild;
  turn.querySelector(".prompt").textContent = prompt;
  field("turns").append(turn);
  field("chat").scrollIntoView({ block: "end" });
  return turn;
}

function onEvent(event, turn) {
  const side = "side" in event ? turn.querySelectorAll(".answer")[event.side] : null;
  const text = side && side.querySelector(".text");
  if (event.event === "text") {
    text.append(event.text);
    text.scrollTop = text.scrollHeight;
  } else if (event.event === "done") {
    text.textContent = event.text;
    const length = `${event.num_tokens} tokens`;
    side.querySelector(".length").textContent = event.truncated ? `${length}, truncated at the length limit` : length;
    if (text.scrollHeight > text.clientHeight) text.tabIndex = 0;
  } else if (event.event === "scores") {
    showScores(side.querySelector("table"), event.scorers, event.rows);
    field("chat").scrollIntoView({ block: "nearest" });
  } else if (event.event === "start") {
    isFirst = false;
    show("state", event.text);
    show("about", event.settings);
    field("notes").replaceChildren(...event.notes.map((note) => cell("li", note)));
  } else {
    show(event.event === "error" ? "problem" : "state", event.text);
  }
}

async function readLines(body, action) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", last = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return last;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      const event = JSON.parse(line);
      last = event.event;
      action(event);
    }
  }
}

function setBusy(busy) {
  field("ask").disabled = busy;
  field("stop").disabled = !busy;
  field("new").disabled = busy;
  // Read out at the end, and not word by word.
  field("turns").ariaBusy = String(busy);
}

async function ask() {
  const prompt = field("prompt").value.trim();
  if (running || !prompt) return;
  const turn = beginTurn(prompt);
  const body = new URLSearchParams(new FormData(form));
  body.set("is_first", isFirst ? "yes" : "no");
  running = new AbortController();
  setBusy(true);
  show("problem", "");
  show("state", "Asking.");
  field("prompt").value = "";
  let last = "error";
  try {
    const answer = await fetch(form.dataset.address, { method: "POST", body, signal: running.signal });
    if (answer.ok) {
      last = await readLines(answer.body, (event) => onEvent(event, turn));
      if (last !== "end" && last !== "error") show("problem", "The answer was cut off: the viewer has ended.");
    } else if ((answer.headers.get("content-type") || "").startsWith("application/json")) {
      onEvent(await answer.json(), turn);
    } else {
      show("problem", `The viewer refused this (${answer.status}); fix: load the page again.`);
    }
  } catch (error) {
    if (error.name === "AbortError") last = "stopped";
    else show("problem", "The viewer does not answer: it has ended.");
  }
  if (last !== "end") show("state", last === "stopped" ? "Stopped. The answers stay as far as they came." : "");
  const isEmpty = [...turn.querySelectorAll(".answer .text")].every((text) => !text.textContent);
  if (last !== "end" && isEmpty) {
    turn.remove();
    if (!field("prompt").value) field("prompt").value = prompt;
  }
  running = null;
  setBusy(false);
  if (!document.activeElement || document.activeElement === document.body) field("prompt").focus();
}

function begin() {
  const fresh = new Uint8Array(8);
  crypto.getRandomValues(fresh);
  form.elements.conversation.value = [...fresh].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  isFirst = true;
  field("turns").replaceChildren();
  show("problem", "");
  show("state", "A new conversation.");
  field("prompt").focus();
}

if (form) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    ask();
  });
  field("prompt").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    ask();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && running) running.abort();
  });
  field("stop").addEventListener("click", () => running && running.abort());
  field("new").addEventListener("click", begin);
  field("new").disabled = false;
  field("prompt").focus();
}
