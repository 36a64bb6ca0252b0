"use strict";
// What is asked of a service, and what it says; picture.js has the picture that it is about.

const WORDS = {
  answer: ["Question", "question"],
  caption: ["", ""],
  ground: ["Phrase to find", "phrase"],
  match: ["Text that may describe it", "text"],
  search: ["What to look for in the folder", "text"],
};
const NAMES = { answer: "Answer a question", caption: "Describe it", ground: "Find a phrase", match: "Match a text", search: "Search the folder" };
let models = [];
let running = null; // an AbortController

const model = () => models.find((each) => each.name === at("model").value);
const kind = () => (document.querySelector("input[name=kind]:checked") || {}).value;

function note(text) { at("answer").replaceChildren(made("p", text, "soft")); }
function say(text, ...more) { at("answer").replaceChildren(made("p", text, "said"), ...more); }

function fault(text) {
  const told = text && text[0].toUpperCase() + text.slice(1);
  at("fault").textContent = told && !/[.!?]$/.test(told) ? `${told}.` : told;
  if (text) at("fault").scrollIntoView({ block: "nearest" });
}

async function begin() {
  try {
    const response = await fetch("/v1/models");
    if (!response.ok) throw new Error(await sentence(response));
    models = (await response.json()).models;
  } catch (error) {
    fault(error instanceof TypeError ? "The service does not answer; load the page again." : error.message);
    return;
  }
  note("Nothing is asked yet.");
  for (const each of models) at("model").add(new Option(each.name, each.name));
  at("model").addEventListener("change", showKinds);
  showKinds();
}

function showKinds() {
  const before = kind();
  const able = Object.keys(NAMES).filter((name) => model().kinds.includes(name));
  at("kinds").replaceChildren(...able.map((name, place) => {
    const label = document.createElement("label");
    const input = document.createElement("input");
    input.type = "radio";
    input.className = "unseen";
    input.name = "kind";
    input.value = name;
    input.checked = able.includes(before) ? name === before : place === 0;
    input.addEventListener("change", showFields);
    label.append(input, NAMES[name]);
    return label;
  }));
  showFields();
}

function showFields() {
  const [label] = WORDS[kind()] || [""];
  at("text-row").hidden = !label;
  at("text-label").textContent = label;
  at("look-row").hidden = !model().look || !["answer", "ground", "match"].includes(kind());
  at("with-row").hidden = kind() !== "search";
}

const lacking = (control, text) => Object.assign(new Error(text), { control });

function request() {
  if (!kind()) throw new Error("This model can be asked by programs alone; see the API.");
  const [label, field] = WORDS[kind()];
  const asked = { model: at("model").value };
  const text = at("text").value.trim();
  const isSearch = kind() === "search";
  if (isSearch && at("with").checked && !picture) throw lacking("file", "Choose a picture to search with.");
  if (!isSearch && !picture) throw lacking("file", "Choose a picture first.");
  if (label && !text && !(isSearch && at("with").checked)) throw lacking("text", "Write what you ask for.");
  if (label && text) asked[field] = text;
  if (!isSearch || at("with").checked) asked.image = picture.base64;
  if (!at("look-row").hidden && at("look").checked) asked.look = true;
  if (kind() === "caption") asked.stream = true;
  return asked;
}

// Nothing runs any more; what was asked is given up where it is not answered.
function end() {
  if (running) running.abort();
  running = null;
  at("send").removeAttribute("aria-disabled");
  if (document.activeElement === at("stop")) at("send").focus(); // a button that goes would take the keyboard's place with it
  at("stop").hidden = true;
}

async function ask(event) {
  event.preventDefault();
  if (running) return;
  fault("");
  let asked;
  try {
    asked = request();
  } catch (error) {
    fault(error.message);
    if (error.control) at(error.control).focus({ preventScroll: true }); // the sentence stays in sight
    return;
  }
  const what = kind();
  const mine = running = new AbortController();
  at("found").hidden = true;
  at("send").setAttribute("aria-disabled", "true"); // and not disabled, which loses the keyboard's place
  at("stop").hidden = false;
  note("Waiting for the answer …");
  try {
    const response = await fetch(`/v1/${what}`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(asked),
      signal: mine.signal,
    });
    if (!response.ok) throw new Error(await sentence(response));
    show(what, asked, what === "caption" ? await streamed(response) : await response.json());
  } catch (error) {
    if (running !== mine) return; // stopped, or another picture was chosen
    clear();
    note("No answer.");
    fault(error instanceof TypeError ? "The service closed the connection: it has ended, or the picture is too large for it." : error.message);
  } finally {
    if (running === mine) end();
  }
}

async function sentence(response) {
  const said = await response.json().catch(() => ({})); // a proxy before the service answers in its own way
  return said.error || `The service answers with an error, ${response.status}.`;
}

async function streamed(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  at("answer").setAttribute("aria-busy", "true"); // the whole sentence is read out, not each of its drafts
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) throw new Error("The connection ended before the answer.");
      const lines = (rest + value).split("\n\n");
      rest = lines.pop();
      for (const line of lines) {
        const said = JSON.parse(line.slice("data: ".length));
        if (said.error) throw new Error(said.error);
        if (said.draft === undefined) return said;
        say(`${said.draft} …`);
      }
    }
  } finally {
    at("answer").removeAttribute("aria-busy");
  }
}

const percent = (value) => `${(100 * value).toFixed(1)}%`;

function show(what, asked, said) {
  looks = said.look || null;
  box = what === "ground" ? said.bbox : null;
  if (picture) draw();
  showLooks();
  if (what === "caption") say(said.caption);
  if (what === "match") say(`It matches with a probability of ${percent(said.match)}.`);
  if (what === "ground") say(`A box at ${said.bbox.map((value) => Math.round(value)).join(", ")} (left, top, width, height in pixels).`);
  if (what === "answer") say(said.answer, ranked(said.answers || []));
  if (what === "search") list(asked, said.found);
  at("answer").scrollIntoView({ block: "nearest" }); // no further than needed, so that the picture stays
}

// what a model that ranks answers finds likely, of which the first is said already
function ranked(answers) {
  const known = answers.map((each) => [each.answer, Object.values(each).find((value) => typeof value === "number")]);
  if (known.length < 2) return "";
  const rows = document.createElement("ol");
  rows.className = "answers";
  rows.append(...known.map(([answer, probability]) => {
    const row = document.createElement("li");
    row.append(made("span", answer));
    if (probability === undefined) return row;
    const bar = document.createElement("i");
    bar.style.width = percent(probability);
    row.append(made("span", percent(probability)), bar);
    return row;
  }));
  return rows;
}

function list(asked, found) {
  const count = found.filter((each) => !each.error).length;
  say(count === 1 ? "1 picture was found." : `${count} pictures were found.`);
  const name = encodeURIComponent(asked.model);
  at("found").replaceChildren(...found.map((each) => {
    const row = document.createElement("li");
    const told = document.createElement("span");
    if (each.error) {
      told.append(made("bdi", each.image), `: ${each.error}`);
    } else {
      const image = document.createElement("img");
      image.src = `/v1/images/${each.row}?model=${name}`;
      image.alt = each.image;
      image.loading = "lazy";
      row.append(image);
      told.append(`${each.rank}. `, made("bdi", each.image), made("span", ` ${each.score.toFixed(3)}`, "soft"));
    }
    row.append(told);
    return row;
  }));
  at("found").hidden = false;
}

at("ask").addEventListener("submit", ask);
at("stop").addEventListener("click", () => {
  end();
  clear();
  note("Stopped.");
});
begin();
