"use strict";
// The page of a service: a picture stays in the browser until something is asked, and goes to this service alone.

const at = (id) => document.getElementById(id);
const WORDS = {
  answer: ["Question", "question"],
  caption: ["", ""],
  ground: ["Phrase to find", "phrase"],
  match: ["Text that may describe it", "text"],
  search: ["What to look for in the folder", "text"],
};
const NAMES = { answer: "Answer a question", caption: "Describe it", ground: "Find a phrase", match: "Match a text", search: "Search the folder" };
let models = [];
let picture = null; // {bitmap, base64}
let looks = null; // the last answer's
let box = null;
let running = null; // an AbortController

const model = () => models.find((each) => each.name === at("model").value);
const kind = () => (document.querySelector("input[name=kind]:checked") || {}).value;

function say(text) { at("answer").textContent = text; }
function fault(text) { at("fault").textContent = text; }

async function begin() {
  try {
    const response = await fetch("/v1/models");
    models = (await response.json()).models;
  } catch (error) {
    fault("The service does not answer; load the page again.");
    return;
  }
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

async function take(file) {
  if (!file) return;
  fault("");
  let bitmap;
  try {
    bitmap = await createImageBitmap(file); // upright, as the service sees it
  } catch (error) {
    fault("This file is no picture that can be shown; choose a JPEG, PNG, WebP or GIF.");
    return;
  }
  const bytes = new Uint8Array(await file.arrayBuffer());
  let text = "";
  for (let start = 0; start < bytes.length; start += 32768) text += String.fromCharCode(...bytes.subarray(start, start + 32768));
  picture = { bitmap, base64: btoa(text), name: file.name };
  looks = box = null;
  at("stage").hidden = false;
  at("words").hidden = true;
  draw();
  say("The picture is there; ask about it.");
}

function draw(map) {
  const canvas = at("canvas");
  const { bitmap } = picture;
  const scale = Math.min(1, 1600 / Math.max(bitmap.width, bitmap.height));
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const pen = canvas.getContext("2d");
  pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  if (map) {
    const heat = document.createElement("canvas");
    heat.width = map[0].length;
    heat.height = map.length;
    const brush = heat.getContext("2d");
    const pixels = brush.createImageData(heat.width, heat.height);
    map.flat().forEach((value, place) => pixels.data.set([255, Math.round(200 * value), 0, Math.round(170 * value)], 4 * place));
    brush.putImageData(pixels, 0, 0);
    const side = Math.min(canvas.width, canvas.height);
    const area = looks.middle
      ? [(canvas.width - side) / 2, (canvas.height - side) / 2, side, side]
      : [0, 0, canvas.width, canvas.height];
    pen.drawImage(heat, ...area);
  }
  if (box) {
    const [left, top, width, height] = box.map((value) => value * scale);
    const line = Math.max(2, canvas.width / 200);
    for (const [style, thick] of [["#ffffff", 2 * line], ["#b91c1c", line]]) {
      pen.strokeStyle = style;
      pen.lineWidth = thick;
      pen.strokeRect(left, top, width, height);
    }
  }
  const told = [picture.name, box ? "with a box" : "", map ? "with where a word looks" : ""].filter(Boolean);
  canvas.setAttribute("aria-label", told.join(", "));
}

function showLooks() {
  const place = at("words");
  place.hidden = !looks;
  if (!looks || !Array.isArray(looks.whole[0])) { place.hidden = true; return; }
  const choices = [["all words", looks.whole], ...looks.words.map((word, number) => [word, looks.maps[number]]), ["none", null]];
  place.replaceChildren(...choices.map(([word, map], number) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = word;
    button.setAttribute("aria-pressed", String(number === 0));
    button.addEventListener("click", () => {
      for (const other of place.children) other.setAttribute("aria-pressed", String(other === button));
      draw(map);
    });
    return button;
  }));
  draw(looks.whole);
}

function request() {
  const [label, field] = WORDS[kind()];
  const asked = { model: at("model").value };
  const text = at("text").value.trim();
  const isSearch = kind() === "search";
  if (isSearch && at("with").checked && !picture) throw new Error("Choose a picture to search with.");
  if (!isSearch && !picture) throw new Error("Choose a picture first.");
  if (label && !text && !(isSearch && at("with").checked)) throw new Error("Write what you ask for.");
  if (label && text) asked[field] = text;
  if (!isSearch || at("with").checked) asked.image = picture.base64;
  if (!at("look-row").hidden && at("look").checked) asked.look = true;
  if (kind() === "caption") asked.stream = true;
  return asked;
}

async function ask(event) {
  event.preventDefault();
  fault("");
  at("found").hidden = true;
  let asked;
  try {
    asked = request();
  } catch (error) {
    fault(error.message);
    return;
  }
  const what = kind();
  running = new AbortController();
  at("send").disabled = true;
  at("stop").hidden = false;
  say("…");
  try {
    const response = await fetch(`/v1/${what}`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(asked),
      signal: running.signal,
    });
    if (!response.ok) throw new Error((await response.json()).error);
    show(what, asked, what === "caption" ? await streamed(response) : await response.json());
  } catch (error) {
    say(error.name === "AbortError" ? "Stopped." : "");
    if (error.name !== "AbortError") fault(error.message);
  } finally {
    running = null;
    at("send").disabled = false;
    at("stop").hidden = true;
  }
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
  if (what === "answer") {
    const others = (said.answers || []).slice(1).map((each) => Object.values(each).map((value) => (typeof value === "number" ? percent(value) : value)).join(" "));
    say([said.answer, others.length ? `next best: ${others.join(", ")}` : ""].filter(Boolean).join("\n"));
  }
  if (what === "search") list(asked, said.found);
}

function list(asked, found) {
  say(`${found.filter((each) => !each.error).length} pictures were found.`);
  const name = encodeURIComponent(asked.model);
  at("found").replaceChildren(...found.map((each) => {
    const row = document.createElement("li");
    const told = document.createElement("span");
    if (each.error) {
      told.textContent = `${each.image}: ${each.error}`;
    } else {
      const image = document.createElement("img");
      image.src = `/v1/images/${each.row}?model=${name}`;
      image.alt = each.image;
      image.loading = "lazy";
      row.append(image);
      told.textContent = `${each.rank}. ${each.image} (${each.score.toFixed(3)})`;
    }
    row.append(told);
    return row;
  }));
  at("found").hidden = false;
}

at("file").addEventListener("change", () => take(at("file").files[0]));
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    at("drop").classList.toggle("over", name === "dragover");
    if (name === "drop") take(event.dataTransfer.files[0]);
  });
}
at("ask").addEventListener("submit", ask);
at("stop").addEventListener("click", () => running && running.abort());
begin();
