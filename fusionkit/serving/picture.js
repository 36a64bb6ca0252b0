"use strict";
// The picture of the page: how it comes there, and what is drawn on it. It stays in the browser until something is asked (page.js).

const at = (id) => document.getElementById(id);
let picture = null; // {bitmap, base64, name}
let looks = null; // the last answer's
let box = null;
let taken = 0; // pictures that were chosen: of two that are decoded at once the later one counts

// all that is said is put in as text, whose direction is its own
function made(tag, text, name) {
  const element = document.createElement(tag);
  element.textContent = text;
  element.dir = "auto";
  if (name) element.className = name;
  return element;
}

async function take(file) {
  if (!file) return;
  fault("");
  const turn = ++taken;
  let bitmap;
  let bytes;
  try {
    bitmap = await createImageBitmap(file); // upright, as the service sees it
    bytes = new Uint8Array(await file.arrayBuffer());
  } catch (error) {
    if (turn === taken) fault(`The file ${file.name} is no picture that can be shown; choose a JPEG, PNG, WebP or GIF.`);
    return;
  }
  if (turn !== taken) return;
  let text = "";
  for (let start = 0; start < bytes.length; start += 32768) text += String.fromCharCode(...bytes.subarray(start, start + 32768));
  picture = { bitmap, base64: btoa(text), name: file.name };
  end(); // what runs is about another picture
  at("stage").hidden = false;
  at("drop").classList.add("full");
  at("file-label").textContent = "Choose another";
  at("file-told").textContent = `${file.name}, ${bitmap.width} × ${bitmap.height}`;
  clear();
  at("found").hidden = true;
  note("The picture is there; ask about it.");
}

function clear() {
  looks = box = null;
  if (picture) draw();
  showLooks();
}

function draw(map) {
  const canvas = at("canvas");
  const { bitmap } = picture;
  const most = Math.max(bitmap.width, bitmap.height);
  const scale = most < 640 ? Math.ceil(640 / most) : Math.min(1, 1600 / most); // lines on a small picture are thin too
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const pen = canvas.getContext("2d");
  pen.imageSmoothingEnabled = scale < 3; // a drawing of few pixels keeps its edges
  pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  pen.imageSmoothingEnabled = true;
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
    const line = Math.max(2, canvas.width / 160);
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
    const button = made("button", word);
    button.type = "button";
    button.setAttribute("aria-pressed", String(number === 0));
    button.addEventListener("click", () => {
      for (const other of place.children) other.setAttribute("aria-pressed", String(other === button));
      draw(map);
    });
    return button;
  }));
  draw(looks.whole);
}

const hasFiles = (moved) => [...moved.types].includes("Files"); // words may be dragged into the question
at("file").addEventListener("change", () => {
  const [file] = at("file").files;
  take(file);
  at("file").value = ""; // so that the same one can be chosen again
});
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    if (!hasFiles(event.dataTransfer)) return;
    event.preventDefault();
    document.body.classList.toggle("over", name === "dragover" || (name === "dragleave" && event.relatedTarget !== null));
    if (name === "drop") take(event.dataTransfer.files[0]);
  });
}
document.addEventListener("paste", (event) => {
  if (!hasFiles(event.clipboardData)) return;
  event.preventDefault();
  take(event.clipboardData.files[0]);
});
